"""Barriers between seeds: matrices, curves, and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import connectivity
from recipes.common import data, models
from tests.recipes import running


@pytest.mark.full
def test_the_summary_is_what_the_library_says_of_the_model(finished):
    summary = finished.summary
    params, _, masks = finished.model()
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
@pytest.mark.full
def test_barriers_are_matrices_of_all_pairs(finished, arm):
    said = finished.summary["arms"][arm]
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


@pytest.mark.full
def test_two_seeds_without_a_curve(tmp_path):
    two = running.varied("connectivity", "--seeds 2 --curve-steps 0", tmp_path / "two")
    said = two.summary["arms"]["sparse"]
    assert said["error_barrier"]["error"] is None and said["error_on_the_curve"] is None
    assert "on a curve" not in (two.out / "report.md").read_text().split("Run it again")[0]


@pytest.mark.full  # the two rules themselves: test_measures.py
def test_it_says_how_running_statistics_were_made(finished, tmp_path):
    assert "running statistics" not in (finished.out / "report.md").read_text()
    conv = running.varied(
        "connectivity", "--model conv --width 0.25 --norm batch --steps 10", tmp_path / "conv"
    )
    assert conv.summary["running_statistics"] == "recalibrate"
    said = "running statistics between them: recalibrate"
    assert said in (conv.out / "report.md").read_text()
