"""The recipe end to end, in this process: what it writes, refuses, and survives."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import connectivity
from recipes.common import checkpoints, data, folder, models
from tests.recipes import running

SHORT = ["--seeds", "3", "--steps", "40", "--every", "2", "--evaluations", "2", "--points", "5"]
SHORT += ["--train-examples", "512", "--test-examples", "100", "--curve-steps", "5"]
SHORT += ["--sparsity", "0.5"]  # at 95 % such a short run ends at chance


exit_code = partial(running.exit_code, connectivity)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run."""
    out = tmp_path_factory.mktemp("runs") / "connectivity"
    connectivity.main([*SHORT, "--out", str(out)])
    return out


def summary_of(out):
    """Its numbers, without what differs from run to run."""
    summary = json.loads((out / "summary.json").read_text())
    for arm in ("dense", "sparse"):
        for clock in ("matrix_seconds", "training_seconds"):
            del summary["arms"][arm][clock]
    clocks = ("seconds", "compare_seconds", "peak_memory_bytes")
    return {key: summary[key] for key in summary if key not in clocks}


def test_it_writes_everything(finished):
    report = running.wrote_everything(finished, "matrices", "paths")
    assert "| error barrier |" in report and "3 pairs x 5 points" in report
    assert "running statistics" not in report  # this network has none


def test_the_summary_is_what_the_library_says_of_the_model(finished):
    summary = summary_of(finished)
    params, _, masks = checkpoints.load_model(finished / folder.MODEL)
    overlaps = jp.pairwise(jp.overlap, jax.tree.map(np.asarray, masks))
    said = summary["arms"]["sparse"]["mask_overlap"]
    np.testing.assert_allclose(said["matrix"], overlaps, rtol=1e-6)
    mean, error = jp.analysis.jackknife(overlaps)
    assert (said["mean"], said["error"]) == (
        pytest.approx(float(mean)),
        pytest.approx(float(error)),
    )
    assert summary["arms"]["dense"]["mask_overlap"] is None
    assert not params["Dense_0"]["kernel"][~masks["Dense_0"]["kernel"]].any()


@pytest.mark.parametrize("arm", ["dense", "sparse"])
def test_barriers_are_matrices_of_all_pairs(finished, arm):
    said = summary_of(finished)["arms"][arm]
    for name in ("error_barrier", "loss_barrier", "error_instability", "loss_instability"):
        matrix = np.array(said[name]["matrix"])
        assert (
            matrix.shape == (3, 3) and (matrix == matrix.T).all() and (np.diag(matrix) == 0).all()
        )
        off = matrix[np.triu_indices(3, k=1)]
        assert (said[name]["mean"], said[name]["highest"]) == (off.mean(), off.max())
    assert (np.array(said["error_barrier"]["matrix"]) >= 0).all()
    assert len(said["components"]) == 3 and len(said["test_accuracy"]["per_seed"]) == 3
    i, j = said["furthest_pair"]
    assert said["error_barrier"]["matrix"][i][j] == said["error_barrier"]["highest"]
    # the line and the curve join the same two networks
    line, curve = said["error_on_the_line"], said["error_on_the_curve"]
    assert len(line) == len(curve) == 5
    assert (line[0], line[-1]) == (curve[0], curve[-1])


def test_the_configuration_reproduces_the_run(finished, tmp_path):
    again = tmp_path / "again"
    connectivity.main(["--config", str(finished / "config.yaml"), "--out", str(again)])
    assert summary_of(again) == summary_of(finished)


def test_an_interrupted_run_goes_on_where_it_was(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "connectivity"
    assert running.interrupted(connectivity, monkeypatch, [*SHORT, "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert f"go on with: python -m recipes.connectivity --out {out} --resume" in said

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    assert exit_code("--out", str(copy), "--resume", "--seeds", "4") == 2
    assert "other settings than those of the run: --seeds 3 -> 4" in capsys.readouterr().err

    connectivity.main(["--out", str(out), "--resume"])
    assert summary_of(out) == summary_of(finished)
    assert not (out / "checkpoint").exists()


def test_a_curve_may_use_the_weights_of_either_end(monkeypatch):
    seen = {}

    def fit_curve(key, loss, a, b, optimizer, steps, masks):
        seen.update(a=a, b=b, masks=masks)
        return a, None

    monkeypatch.setattr(jp.analysis, "fit_curve", fit_curve)
    stack = {"params": {"w": jnp.arange(12.0).reshape(3, 4)}, "batch_stats": {"n": jnp.ones(3)}}
    masks = {"w": jnp.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0]], bool)}
    measure = lambda variables: {"error": variables["params"]["w"].sum()}
    digits = data.load("digits", train_examples=32)
    config = connectivity.Config(points=3)
    told = connectivity.bend(config, models.MLP((4,), 10), digits, measure, stack, masks, (0, 2))
    assert seen["a"]["params"]["w"].tolist() == [0, 1, 2, 3]
    assert seen["b"]["params"]["w"].tolist() == [8, 9, 10, 11]
    assert seen["masks"]["params"]["w"].tolist() == [True, True, True, False]
    assert seen["masks"]["batch_stats"] == {"n": None}
    assert (told[0], told[-1]) == (6, 38)


@pytest.mark.slow
def test_two_seeds_without_a_curve(tmp_path):
    out = tmp_path / "two"
    connectivity.main([*SHORT, "--seeds", "2", "--curve-steps", "0", "--out", str(out)])
    said = summary_of(out)["arms"]["sparse"]
    assert said["error_barrier"]["error"] is None and said["error_on_the_curve"] is None
    assert "on a curve" not in (out / "report.md").read_text().split("Run it again")[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--seeds 1", "--seeds must be at least 2, got 1"),
        ("--points 10", "--points must be odd, so that the middle is one of them; got 10"),
        ("--points 1", "--points must be at least 3, got 1"),
        ("--statistics frozen", "unknown --statistics 'frozen'; choose one of recalibrate, interp"),
        ("--sparsity 90", "--sparsity must be in [0, 1), got 90 (a fraction: did you mean 0.9?)"),
        ("--threshold 0", "--threshold must be in (0, 100], got 0"),
        ("--test-examples 0", "--test-examples must be at least 1, got 0"),
        ("--curve-steps -1", "--curve-steps must be at least 0, got -1"),
        ("--dataset mnist --data-dir /nowhere", "--data-dir '/nowhere' is not a folder"),
        ("--model vgg", "unknown --model 'vgg'"),
        ("--steps 1", "must be at least 2, got 1"),
        ("--batch-size 2000", "--batch-size 2000 is more than all 1,437 examples"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in running.mistake(connectivity, capsys, tmp_path, argv.split())


@pytest.mark.slow  # the two rules themselves: test_measures.py
def test_it_says_how_running_statistics_were_made(tmp_path):
    out = tmp_path / "conv"
    connectivity.main(
        [*SHORT, "--model", "conv", "--norm", "batch", "--steps", "10", "--out", str(out)]
    )
    assert summary_of(out)["running_statistics"] == "recalibrate"
    assert "running statistics between them: recalibrate" in (out / "report.md").read_text()
