"""The recipe end to end, in this process: what it writes, refuses, and survives."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import gmp
from recipes.common import arms, checkpoints, data, folder, lanes
from tests.recipes import running
from tests.recipes.running import exit_code, metrics

SHORT = [*running.SHORT, "--every", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run."""
    out = tmp_path_factory.mktemp("runs") / "gmp"
    gmp.main([*SHORT, "--out", str(out)])
    return out


def test_it_writes_everything(finished):
    report = running.wrote_everything(finished, "training", "layers")
    assert "| test accuracy |" in report


def test_the_summary_is_exact_numbers(finished):
    summary = json.loads((finished / "summary.json").read_text())
    weights = 64 * 256 + 256 * 128 + 128 * 10
    kept = weights - round(0.95 * weights)
    assert summary["prunable_weights"] == weights
    assert summary["kept_weights"] == [kept, kept]
    assert summary["sparsity"] == (weights - kept) / weights
    assert (summary["seeds"], summary["steps"]) == (2, 12)
    assert summary["seconds"] > 0
    for arm in ("dense_accuracy", "sparse_accuracy"):
        numbers = summary[arm]
        assert set(numbers) == {"mean", "std", "per_seed", "at_chance", "empty_layers"}
        assert len(numbers["per_seed"]) == 2
        assert numbers["mean"] == np.mean(numbers["per_seed"])


def test_metrics_of_both_arms(finished):
    records = folder.read_lines(finished / folder.METRICS)
    assert [record["step"] for record in records] == [4, 8, 12]
    assert all(len(record["sparse"]["sparsity"]) == 2 for record in records)
    assert records[0]["dense"]["loss"] != records[-1]["dense"]["loss"]
    assert "sparsity" not in records[0]["dense"]
    assert records[-1]["sparse"]["sparsity"] == pytest.approx([0.95, 0.95], abs=1e-4)


def test_the_model_loads_and_is_sparse(finished):
    params, _, masks = checkpoints.load_model(finished / folder.MODEL)
    for layer in ("Dense_0", "Dense_1", "Dense_2"):
        assert masks[layer]["bias"] is None
        assert not params[layer]["kernel"][~masks[layer]["kernel"]].any()
    summary = json.loads((finished / "summary.json").read_text())
    assert sum(int(mask[0].sum()) for mask in jax.tree.leaves(masks)) == summary["kept_weights"][0]


def test_the_configuration_reproduces_the_run(finished, tmp_path):
    again = tmp_path / "again"
    config = str(finished / "config.yaml")
    gmp.main(["--config", config, "--out", str(again), "--keep-best"])
    assert metrics(again) == metrics(finished)
    (best,) = (again / folder.BEST).iterdir()  # only the last states are as sparse as asked for
    assert best.name == "12"
    sparse = checkpoints.read(best).tree["settled"]["sparse"]
    masks = jp.export.unpack(jp.get_masks(sparse["opt_state"]), sparse["params"])
    assert jp.sparsity(masks) == pytest.approx(0.95, abs=1e-4)


def test_a_finished_run_is_kept(finished, capsys):
    before = (finished / "summary.json").read_bytes()
    assert exit_code(gmp, *SHORT, "--out", str(finished)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --out") and "--overwrite" in said and said.count("\n") == 1
    assert (finished / "summary.json").read_bytes() == before


def test_an_interrupted_run_goes_on_where_it_was(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "gmp"
    argv = [*SHORT, "--out", str(out)]
    assert running.interrupted(gmp, monkeypatch, argv, step=4) == 130
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"stopped after 4 steps; the checkpoint is in {out}/checkpoint/4" in last_line
    assert f"python -m recipes.gmp --out {out} --resume" in last_line
    assert not (out / "summary.json").exists()

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    assert exit_code(gmp, "--out", str(copy), "--resume", "--seeds", "3") == 2
    assert "--resume with other settings than those of the run: --seeds 2 -> 3" in (
        capsys.readouterr().err
    )
    gmp.main(["--out", str(out), "--resume"])
    assert metrics(out) == metrics(finished)
    assert not (out / "checkpoint").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--sparsity 90", "--sparsity must be in [0, 1), got 90 (a fraction: did you mean 0.9?)"),
        ("--sparsity nan", "--sparsity must be in [0, 1), got nan"),
        ("--dataset imagenet", "unknown --dataset 'imagenet'; choose one of digits, mnist"),
        ("--dataset mnist --data-dir /nowhere", "--data-dir '/nowhere' is not a folder"),
        ("--model vgg", "unknown --model 'vgg'"),
        ("--norm none", "unknown --norm 'none'"),
        ("--optimizer lamb", "unknown --optimizer 'lamb'"),
        ("--schedule step", "unknown --schedule 'step'"),
        ("--allocation best", "unknown --allocation 'best'"),
        ("--pattern 2:4", "unknown --pattern '2:4'"),
        ("--seeds 0", "--seeds must be at least 1, got 0"),
        ("--seeds 1000000000", "--seeds must be at most 65,536, got 1,000,000,000"),
        ("--every 0", "--every must be at least 1, got 0"),
        ("--log-every 0", "--log-every must be at least 1, got 0"),
        ("--seed 2147483648", "--seed must be at most 2,147,483,647 (int32), got 2,147,483,648"),
        ("--seed 2147483647", "--seed must be at most 2,147,483,640 with --seeds 8"),
        ("--sparsity 0.99999999999", "--sparsity must be in [0, 1), got 0.99999999999 (which is 1"),
        ("--every 99999999999", "--every must be at most 2,147,483,647 (int32), got 99,999,999,99"),
        ("--sparsty 0.9", "unknown flag '--sparsty'; did you mean '--sparsity'?"),
        ("--steps 1", "must be at least 2, got 1"),
        ("--batch-size 2000", "--batch-size 2000 is more than all 1,437 examples"),
        ("--begin 0.5 --end 0.4", "--end must be in (0.5, 1], got 0.4"),
        ("--learning-rate 0", "--learning-rate must be in (0, inf), got 0"),
        ("--out /dev/null/x", "--out '/dev/null/x' is not writable"),
        ("--resume", "config.yaml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in running.mistake(gmp, capsys, tmp_path, argv.split())


def test_seeds_on_two_devices_are_those_of_one(finished, tmp_path, monkeypatch):
    """To float tolerance; also of a run that was interrupted."""
    monkeypatch.setattr(lanes, "devices_for", lambda seeds: 2)
    out = tmp_path / "run"
    argv = ["--out", str(out), *SHORT]
    assert running.interrupted(gmp, monkeypatch, argv, step=8) == 130
    gmp.main(["--out", str(out), "--resume"])
    for own, theirs in zip(metrics(out), metrics(finished), strict=True):
        for arm in ("dense", "sparse"):
            np.testing.assert_allclose(own[arm]["loss"], theirs[arm]["loss"], rtol=1e-5)
            assert own[arm].get("sparsity") == theirs[arm].get("sparsity")
    *_, masks = checkpoints.load_model(out / folder.MODEL)
    *_, same = checkpoints.load_model(finished / folder.MODEL)
    assert min(jax.tree.leaves(jax.tree.map(lambda a, b: np.mean(a == b), masks, same))) > 0.99


def test_progress_says_that_accuracy_is_that_of_training():
    own = {"loss": [0.5], "accuracy": [0.25]}
    few = {"step": 1, "dense": own, "sparse": own | {"sparsity": [0.9]}}
    said = "dense: loss 0.500, train acc 25.0%  sparse 90.0%: loss 0.500, train acc 25.0%"
    assert arms._in_words(few) == said
    many = {"step": 1} | dict.fromkeys("abcd", own)
    assert arms._in_words(many) == "train acc: a 25.0%  b 25.0%  c 25.0%  d 25.0%"


def test_pruning_steps_lie_within_training():
    for steps in (2, 3, 10, 1000):
        for begin, end in ((0, 1), (0.1, 0.7), (0.99, 1), (0, 0.001)):
            first, last = gmp.pruning_steps(begin, end, steps)
            assert 0 <= first < last <= steps - 1


@pytest.mark.parametrize("allocation", list(gmp.ALLOCATIONS))
@pytest.mark.parametrize("pattern", list(gmp.PATTERNS))
def test_every_way_of_pruning_reaches_its_sparsity(allocation, pattern):
    config = gmp.Config(sparsity=0.75, allocation=allocation, pattern=pattern, every=3)
    tx = gmp.arms(config, data.load("digits", train_examples=64), steps=4)["sparse"].optimizer
    params = {"a": jax.random.normal(jax.random.key(0), (32, 32)), "b": jnp.ones((32, 16)) * 0.3}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(4):
        _, state = update(params, state, params)
    assert jp.sparsity(jp.get_masks(state)) == pytest.approx(0.75, abs=0.02)


@pytest.mark.slow
def test_a_convolutional_network_with_batch_norm(tmp_path):
    out = tmp_path / "conv"
    flags = ["--model", "conv", "--norm", "batch", "--sparsity", "0.8", "--out", str(out)]
    gmp.main([*SHORT, *flags])
    assert json.loads((out / "summary.json").read_text())["sparsity"] == pytest.approx(
        0.8, abs=1e-5
    )
    _, batch_stats, _ = checkpoints.load_model(out / folder.MODEL)
    assert batch_stats["BatchNorm_0"]["mean"].shape == (2, 32)
