"""`recipes.one_shot`: its numbers are those of the saved models, and of the runs that it prunes."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest

from recipes import language, one_shot
from recipes.common import checkpoints, cli, folder, repairs
from recipes.common.folder import RecipeError
from recipes.reports import one_shot as report
from tests.recipes import running

pytestmark = pytest.mark.full


def results(finished):
    """By method and sparsity, where layers are pruned alike."""
    every = finished.summary["results"]
    return {(r["method"], r["sparsity"]): r for r in every if r["allocation"] == "uniform"}


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
    paths = list((finished.out / folder.MODEL).iterdir())
    for path in paths:
        method, sparsity, *allocation = path.name.split("-")
        if allocation:
            continue
        sparsity = sparsity.replace("of", ":")
        params, _, masks = checkpoints.load_model(path)
        bits = told[method, sparsity]["test_bits"]["per_seed"][::2]
        np.testing.assert_allclose(s.bits["test"](params), bits, rtol=1e-5)
        mask = np.asarray(masks["block_1"]["mlp"]["gate"]["kernel"])
        assert mask.shape == (2, 80, 192)
        if sparsity == "2:4":
            assert (mask.reshape(2, 20, 4, 192).sum(2) == 2).all()
    assert len(paths) == 6


def test_layers_have_the_sparsity_that_was_allocated(finished):
    """By lamp: they differ from layer to layer, and as many weights go in all as by uniform."""
    (lamp,) = (
        r
        for r in finished.summary["results"]
        if r["allocation"] == "lamp" and r["method"] == "magnitude"
    )
    _, _, masks = finished.model("magnitude-0.5-lamp")
    for path, sparsities in lamp["sparsities"].items():
        mask = np.asarray(functools.reduce(lambda tree, key: tree[key], path.split("/"), masks))
        size = mask[0].size
        gone = size - mask.reshape(2, size).sum(1)
        assert gone.tolist() == [round(s * size) for s in sparsities[::2]], path
    assert len({s for by in lamp["sparsities"].values() for s in by}) > 2
    assert lamp["kept_weights"] == [130_560 // 2] * 4
    uniform = results(finished)["magnitude", "0.5"]["sparsities"]
    assert {s for by in uniform.values() for s in by} == {0.5}


def test_errors_follow_the_order_of_data(finished):
    names = list(results(finished)["wanda", "0.5"]["errors"])
    assert names[:3] == [f"block_0/attention/{name}" for name in ("query", "key", "value")]
    assert names[3:7] == [
        "block_0/attention/out",
        *(f"block_0/mlp/{n}" for n in ("gate", "up", "down")),
    ]
    assert len(names) == 14
    assert all(e["mean"] < 1e-10 for e in results(finished)["dense", "0"]["errors"].values())


@pytest.mark.parametrize("name", repairs.REPAIRS)
def test_a_repair_trains_its_part_and_pruned_weights_stay_zero(finished, run, name, tmp_path):
    config = replace(finished.config, out=tmp_path, repair=(name,), repair_steps=4)
    how = one_shot.shared_of(config, language.study_of(config)).repairs[name]
    (params, _, masks), (dense, _, _) = finished.model("wanda-0.5"), run("language").model()
    after, weights = how(running.Straight(), "repair", params, dense)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, params)
    for path, changed in jax.tree_util.tree_leaves_with_path(moved):
        is_norm, is_kernel = (path[-1].key == end for end in ("scale", "kernel"))
        norms = is_norm and name != "reconstruct"
        kernels = is_kernel and ("lora" in name or name == "reconstruct")
        assert changed == (name == "retrain" or norms or kernels), path
    of_norms, of_kernels, of_table = 5 * 80, 65_280, 39 * 80
    ranks = 2 * (2 * (80 + 80) + 2 * (80 + 40) + 3 * (80 + 192)) * config.adapter_rank
    assert weights == {
        "reconstruct": of_kernels,
        "norms": of_norms,
        "retrain": of_norms + of_kernels + of_table,
    }.get(name, of_norms + ranks)
    kernel = lambda tree: np.asarray(tree["block_1"]["mlp"]["down"]["kernel"])
    assert (kernel(after)[~kernel(masks)] == 0).all() and (~kernel(masks)).any()


def test_models_of_finished_runs(finished, run, tmp_path):
    """Two models of a run of recipes.language, with its text and size in place of the flags."""
    before = run("language")
    argv = ["--trained", str(before.out), "--method", "magnitude", "--sparsity", "0.5"]
    argv += ["--allocation", "uniform", "--repair", "none"]
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


def test_where_a_method_leaves_the_dense_model():
    def record(method, sparsity, perplexity, allocation="uniform"):
        bits = [float(np.log2(perplexity))]
        return {
            "method": method,
            "sparsity": sparsity,
            "allocation": allocation,
            "test_bits": bits,
        }

    curve = {"0.3": 2.01, "0.1": 2.0, "0.2": 2.01, "0.4": 2.2, "0.5": 4.0}
    records = [
        record("dense", "0", 2.0),
        *(record("wanda", sparsity, value) for sparsity, value in curve.items()),
        record("wanda", "2:4", 9.0),
        record("wanda", "0.6", 9.0, "rd"),
        record("magnitude", "0.5", 9.0),  # too few
    ]
    points = report.drop_points(records)
    assert points == {"wanda": {"within": 0.3, "sharpest": 0.4}}
    assert report.in_words(points).endswith("wanda 30 % (40 %)") and report.in_words({}) == ""
