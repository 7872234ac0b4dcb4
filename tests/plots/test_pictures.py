"""Pictures of arrays: what is drawn where; how it looks, a person has to say."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

STEPS = (10, 20, 30)


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_training_draws_the_mean_and_the_range_of_seeds():
    accuracy = {
        "dense": (STEPS, jnp.array([[0.5, 0.7], [0.8, 0.9], [0.9, 0.9]])),
        "sparse": (STEPS[1:], [0.6, 0.7]),  # one seed, fewer steps
    }
    sparsity = {"sparse": (STEPS[1:], [0.0, 0.9])}
    figure = jp.plots.training(accuracy, sparsity, pruned_between=(10, 20), title="Right (%)")
    left, right = figure.axes
    assert line(left, "dense").get_xdata().tolist() == [10, 20, 30]
    np.testing.assert_allclose(line(left, "dense").get_ydata(), [60, 85, 90], rtol=1e-5)
    np.testing.assert_allclose(line(left, "sparse").get_ydata(), [60, 70], rtol=1e-5)
    np.testing.assert_allclose(line(right, "sparse").get_ydata(), [0, 90], rtol=1e-5)
    assert line(left, "sparse").get_color() == line(right, "sparse").get_color()
    band = left.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [50, 90], rtol=1e-5)
    assert left.get_title(loc="left") == "Right (%)"


def test_training_without_a_sparsity_that_changes_has_one_axes():
    accuracy = {"sparse": (STEPS, [0.5, 0.6, 0.7])}
    assert len(jp.plots.training(accuracy).axes) == 1
    assert len(jp.plots.training(accuracy, {"sparse": (STEPS, [0.9, 0.9, 0.9])}).axes) == 1


@pytest.mark.parametrize(
    ("accuracy", "sparsity", "told"),
    [
        ({}, None, r"got accuracy of \[\]"),
        ({"a": (STEPS, np.ones((2, 3)))}, None, r"of 'a' has \(3,\) and \(2, 3\)\. If seeds come"),
        ({"a": (STEPS, np.ones(3))}, {"b": (STEPS, np.ones(3))}, "sparsity only of arms that"),
    ],
)
def test_training_refuses(accuracy, sparsity, told):
    with pytest.raises(ValueError, match=told):
        jp.plots.training(accuracy, sparsity)


def test_pairs_draws_every_cell_but_the_diagonal():
    barriers = jnp.array([[0.0, 1.5, jnp.nan], [1.5, 0.0, 3.0], [2.0, 3.0, 0.0]])
    figure = jp.plots.pairs(
        {"barrier": barriers, "overlap": jp.plots.pictures.Matrix(barriers, "{:.2f}")}
    )
    first, second = figure.axes[:2]
    assert [text.get_text() for text in first.texts] == ["1.5", "n/a", "1.5", "3.0", "2.0", "3.0"]
    assert second.texts[0].get_text() == "1.50"
    assert first.images[0].get_clim() == (0, 3)
    cells = {text.get_position(): text.get_text() for text in first.texts}  # (column, row)
    assert (cells[2, 0], cells[0, 2], cells[2, 1]) == ("n/a", "2.0", "3.0")


@pytest.mark.parametrize(
    ("matrices", "told"),
    [({}, "got no matrix"), ({"a": np.ones((2, 3))}, r"square .* 'a' has shape \(2, 3\)")],
)
def test_pairs_refuses(matrices, told):
    with pytest.raises(ValueError, match=told):
        jp.plots.pairs(matrices)


def test_paths_draws_each_pair_and_their_mean():
    alphas, errors = jnp.linspace(0, 1, 3), jnp.array([[0.1, 0.5, 0.1], [0.1, 0.3, 0.1]])
    panels = {
        "dense": (alphas, errors),
        "sparse": jp.plots.pictures.Paths(alphas, errors, {"x": errors[0]}),
    }
    figure = jp.plots.paths(panels, threshold=2.0)
    dense, sparse = figure.axes
    assert len(dense.lines) == 3 and len(sparse.lines) == 4
    mean = line(dense, "mean of the pairs").get_ydata()
    np.testing.assert_allclose(mean, [10, 40, 10], rtol=1e-5)
    (legend,) = figure.legends  # of all panels
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["within 2 points", "mean of the pairs", "x"]


def test_the_band_of_paths_rises_from_the_mean_of_both_ends():
    errors = jnp.array([[0.1, 0.5, 0.3], [0.1, 0.3, 0.1]])
    (axes,) = jp.plots.paths({"dense": (jnp.linspace(0, 1, 3), errors)}, threshold=2.0).axes
    (band,) = axes.patches
    np.testing.assert_allclose([band.get_y(), band.get_height()], [15, 2], rtol=1e-5)


def test_where_accuracy_climbs_from_chance_sets_no_limit():
    steps = list(range(1, 11))
    rising = [0.1, 0.2, *np.linspace(0.9, 0.95, 8)]  # the first fifth is two of ten
    (axes,) = jp.plots.training({"dense": (steps, rising)}).axes
    np.testing.assert_allclose(axes.get_ylim(), [89.5, 95.5], rtol=1e-5)


@pytest.mark.parametrize(
    ("panels", "told"),
    [({}, "got no panel"), ({"a": (np.ones(3), np.ones((3, 2)))}, r"\(3,\) and \(3, 2\)")],
)
def test_paths_refuses(panels, told):
    with pytest.raises(ValueError, match=told):
        jp.plots.paths(panels)


def test_matplotlib_is_imported_when_something_is_drawn():
    code = "import sys, jaxprune as jp; jp.plots.pairs; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
