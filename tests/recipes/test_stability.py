"""The recipe end to end, in this process: what it writes, refuses, and survives."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from recipes import stability
from recipes.common import checkpoint, run
from tests.recipes import running

SHORT = [
    "--seeds",
    "2",
    "--children",
    "3",
    "--steps",
    "24",
    "--forks",
    "0",
    "12",
    "24",
    "--points",
    "3",
]
SHORT += ["--train-examples", "512", "--test-examples", "100"]


exit_code = partial(running.exit_code, stability)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run."""
    out = tmp_path_factory.mktemp("runs") / "stability"
    stability.main([*SHORT, "--out", str(out)])
    return out


def records_of(out):
    """What it logged, without its clock."""
    return [
        {k: v for k, v in r.items() if k != "seconds"} for r in run.read_lines(out / run.METRICS)
    ]


def test_it_writes_everything(finished):
    assert "| 12, sparse |" in running.wrote_everything(finished, "stability")


def test_every_fork_has_every_pair_and_every_child(finished):
    records = records_of(finished)
    assert [record["step"] for record in records] == [0, 12, 24]
    for record in records:
        for arm in ("dense", "sparse"):
            for name in ("error", "loss"):
                for height in ("instability", "barrier"):
                    assert np.shape(record[arm][f"{name}_{height}"]) == (2, 3)
                assert np.shape(record[arm][f"test_{name}"]) == (2, 3)


def test_children_forked_at_the_end_are_equal(finished):
    # no noise is left: exactly 0, and all children of a trunk err alike
    last = records_of(finished)[-1]
    for arm in ("dense", "sparse"):
        for quantity in ("error", "loss"):
            assert not np.any(last[arm][f"{quantity}_instability"])
            assert np.ptp(last[arm][f"test_{quantity}"], axis=1).max() == 0
    first = records_of(finished)[0]
    assert np.all(np.array(first["dense"]["loss_instability"]) != 0)


def test_the_summary_is_exact_numbers(finished):
    summary = json.loads((finished / "summary.json").read_text())
    weights = 64 * 256 + 256 * 128 + 128 * 10
    assert summary["sparsity"] == round(0.8 * weights) / weights
    assert summary["running_statistics"] is None
    for arm in ("dense", "sparse"):
        for fork, record in zip(summary[arm], records_of(finished), strict=True):
            said = fork["error_instability"]
            assert said["per_seed"] == np.mean(record[arm]["error_instability"], axis=1).tolist()
            assert said["error"] == pytest.approx(np.std(said["per_seed"], ddof=1) / np.sqrt(2))


def test_the_model_is_the_pruned_trunks(finished):
    params, _, masks = checkpoint.load_model(finished / run.MODEL)
    kernel, mask = params["Dense_0"]["kernel"], masks["Dense_0"]["kernel"]
    assert not kernel[~mask].any() and kernel.shape == (2, 64, 256)
    kept = sum(int(m[0].sum()) for m in jax.tree.leaves(masks))
    assert kept == 50432 - round(0.8 * 50432)


def test_the_configuration_reproduces_the_run(finished, tmp_path):
    again = tmp_path / "again"
    stability.main(["--config", str(finished / "config.yaml"), "--out", str(again)])
    assert records_of(again) == records_of(finished)


def test_an_interrupted_run_goes_on_with_the_next_fork(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "stability"
    assert running.interrupted(stability, monkeypatch, [*SHORT, "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert f"go on with: python -m recipes.stability --out {out} --resume" in said
    resume = ["--out", str(out), "--resume"]
    assert running.interrupted(stability, monkeypatch, resume, call=1) == 130  # within a fork
    stability.main(["--out", str(out), "--resume"])
    assert records_of(out) == records_of(finished)
    assert not (out / "checkpoint").exists()


@pytest.mark.slow
def test_one_seed_with_random_masks(tmp_path):
    out = tmp_path / "one"
    flags = ["--seeds", "1", "--forks", "12", "--mask", "random", "--schedule", "cosine"]
    stability.main([*SHORT, *flags, "--out", str(out)])
    fork = json.loads((out / "summary.json").read_text())["dense"][0]
    assert fork["step"] == 12 and fork["loss_instability"]["error"] > 0  # the jackknife's
    assert "standard error over children, by the jackknife" in (out / "report.md").read_text()


def test_forks_unless_given():
    assert stability.forks_of(stability.Config(), 1000) == [0, 20, 100, 400]
    assert stability.forks_of(stability.Config(), 4) == [0, 2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--children 1", "--children must be at least 2, got 1"),
        ("--seeds 0", "--seeds must be at least 1, got 0"),
        ("--forks 0,x", "Error parsing --forks: Could not find valid parse"),
        ("--forks 5 5", "--forks must rise, from 0 or more; got 5 5"),
        ("--forks -1", "--forks must rise, from 0 or more; got -1"),
        ("--steps 10 --forks 0 11", "--forks must be at most the 10 steps; got 11"),
        ("--mask best", "unknown --mask 'best'; choose one of magnitude, random"),
        ("--points 4", "--points must be odd"),
        ("--resume", "config.yaml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in running.mistake(stability, capsys, tmp_path, argv.split())
