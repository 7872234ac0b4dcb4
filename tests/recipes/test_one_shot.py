"""`recipes.one_shot`: its numbers are those of the saved models, and of the runs that it prunes."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from recipes import language, one_shot
from recipes.common import checkpoints, cli, folder, lanes, repairs
from recipes.common.folder import RecipeError
from tests.recipes import running

pytestmark = pytest.mark.full


def results(finished):
    return {(r["method"], r["sparsity"]): r for r in finished.summary["results"]}


def test_weights_kept_are_exact(finished):
    prunable = 130_560  # of two models, each pruned with two sets of windows
    for (method, _), result in results(finished).items():
        kept = result["kept_weights"]
        assert kept == ([prunable] * 2 if method == "dense" else [prunable // 2] * 4)


def test_magnitude_sees_no_windows_and_the_others_do(finished):
    for (method, sparsity), result in results(finished).items():
        if method != "dense":
            a, b, c, d = result["test_bits"]["per_seed"]
            assert (a == b and c == d) == (method == "magnitude"), (method, sparsity)
            assert a != c


def test_bits_and_patterns_are_those_of_the_saved_models(finished, tmp_path):
    s = language.study_of(replace(finished.config, out=tmp_path))
    told = results(finished)
    for path in (finished.out / folder.MODEL).iterdir():
        method, sparsity = path.name.split("-")
        sparsity = sparsity.replace("of", ":")
        params, _, masks = checkpoints.load_model(path)
        bits = told[method, sparsity]["test_bits"]["per_seed"][::2]
        np.testing.assert_allclose(s.bits["test"](params), bits, rtol=1e-5)
        mask = np.asarray(masks["block_1"]["mlp"]["gate"]["kernel"])
        assert mask.shape == (2, 80, 192)
        if sparsity == "2:4":
            assert (mask.reshape(2, 20, 4, 192).sum(2) == 2).all()
    assert len(list((finished.out / folder.MODEL).iterdir())) == 6


def test_errors_follow_the_order_of_data(finished):
    names = list(results(finished)["wanda", "0.5"]["errors"])
    assert names[:3] == [f"block_0/attention/{name}" for name in ("query", "key", "value")]
    assert names[3:7] == [
        "block_0/attention/out",
        *(f"block_0/mlp/{n}" for n in ("gate", "up", "down")),
    ]
    assert len(names) == 14
    assert all(e["mean"] < 1e-10 for e in results(finished)["dense", "0"]["errors"].values())


@pytest.mark.parametrize("name", one_shot.REPAIRS)
def test_a_repair_trains_its_part_and_pruned_weights_stay_zero(finished, name, tmp_path):
    config = replace(finished.config, out=tmp_path, repair=(name,), repair_steps=4)
    how = one_shot.repairs_of(config, language.study_of(config))[name]
    params, _, masks = finished.model("wanda-0.5")
    lane = lanes.Lane(lanes.seed_keys(0, 2))
    after = repairs.repaired(running.Straight(), name, how, params, lane, 4)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, params)
    for path, changed in jax.tree_util.tree_leaves_with_path(moved):
        is_norm, is_kernel = (path[-1].key == end for end in ("scale", "kernel"))
        assert changed == (name == "retrain" or is_norm or ("lora" in name and is_kernel)), path
    kernel = lambda tree: np.asarray(tree["block_1"]["mlp"]["down"]["kernel"])
    assert (kernel(after)[~kernel(masks)] == 0).all() and (~kernel(masks)).any()


def test_models_of_finished_runs(finished, run, tmp_path):
    """Two models of a run of recipes.language, with its text and size in place of the flags."""
    before = run("language")
    argv = ["--trained", str(before.out), "--method", "magnitude", "--sparsity", "0.5"]
    one_shot.main([*argv, "--characters", "9", "--model", "small", "--out", str(tmp_path / "run")])
    told = folder.read_lines(tmp_path / "run" / folder.METRICS)
    assert told[0]["test_bits"] == before.summary["test_bits"]["per_seed"]
    assert cli.from_yaml(one_shot.Config, tmp_path / "run" / folder.CONFIG).model == "tiny"
    params, _, _ = before.model()
    pruned, _, masks = checkpoints.load_model(tmp_path / "run" / "model" / "magnitude-0.5")
    kernel = lambda tree: np.asarray(tree["block_0"]["mlp"]["up"]["kernel"])
    np.testing.assert_array_equal(kernel(pruned), np.where(kernel(masks), kernel(params), 0))
    jax.tree.map(
        np.testing.assert_array_equal, pruned["embed"]["embedding"], params["embed"]["embedding"]
    )


def test_runs_that_differ_are_refused(run):
    outs = [str(run(name).out) for name in ("language", "one_shot")]
    config = one_shot.Config(trained=(outs[0],), context=99)
    assert one_shot.of_trained(config).context == 16
    with pytest.raises(RecipeError, match="unknown key"):  # it is of another recipe
        one_shot.of_trained(one_shot.Config(trained=(outs[1],)))
