"""Figures are PNG of the size that they should be; how they look, a person has to say."""

import io

import numpy as np
from PIL import Image

from recipes.common.figures import style


def size(png):
    return Image.open(io.BytesIO(png)).size


def test_training_curves():
    steps, seeds = [10, 20, 30], 2
    accuracy = {arm: (steps, np.full((3, seeds), 0.9)) for arm in ("dense", "sparse")}
    sparsity = {"sparse": (steps, np.linspace(0, 0.9, 6).reshape(3, seeds))}
    assert size(style.training_curves(accuracy, sparsity, (10, 20))) == (1400, 540)


def test_layer_density():
    layers = {f"Dense_{i}/kernel": np.array([0.1 * i, 0.2 * i]) for i in range(4)}
    width, height = size(style.layer_density({"sparse": layers}))
    assert width == 1400
    assert height > 300
    empty = {"Dense_0/kernel": np.array([0.0]), "Dense_1/kernel": np.array([0.1])}  # one seed
    style.layer_density({"a": empty})
    style.layer_density({"a": empty, "b": empty})


def test_an_empty_layer_is_seen_on_a_logarithmic_axis(monkeypatch):
    """Two arms: all of a's layers live, b's second is empty in one seed and its third in all."""
    figures = []
    monkeypatch.setattr(style, "png", lambda figure: figures.append(figure) or b"")
    alive = {f"{i}": np.array([0.2, 0.1]) for i in range(3)}
    style.layer_density({"a": alive, "b": {**alive, "1": np.array([0.2, 0]), "2": np.zeros(2)}})
    (axes,) = figures[0].axes
    crosses = [line.get_xydata() for line in axes.get_lines() if line.get_marker() == "x"]
    np.testing.assert_allclose(crosses[1], [[5, 1.3], [5, 2.3]])  # half of the fewest, 10 %
    assert len(crosses[0]) == 0 and axes.get_xlim()[0] < 5
    assert "keeps none" in [text.get_text() for text in figures[0].legends[0].get_texts()]


def test_an_arm_looks_like_no_other():
    arms = [f"{kind}{width}" for width in (" x1", " x2", " x4") for kind in "abcdefgh"]
    drawn = style.looks(arms)
    assert list(drawn) == arms
    assert len(set(drawn.values())) == 24
    assert drawn["a x1"].color == drawn["a x4"].color
    assert drawn["a x1"].line == drawn["b x1"].line != drawn["a x2"].line


def test_curve_takes_the_points_that_have_the_value():
    records = [
        {"step": 1, "a": {"x": [1, 2]}},
        {"step": 2, "a": {}},
        {"step": 3, "a": {"x": [3, 4]}},
    ]
    steps, values = style.curve(records, "a", "x")
    assert list(steps) == [1, 3]
    assert values.tolist() == [[1, 2], [3, 4]]


def test_more_arms_than_colours_are_told_apart():
    drawn = style.looks([f"arm{i}" for i in range(11)])
    assert len(set(drawn.values())) == 11
    assert (drawn["arm0"].line, drawn["arm8"].line) == ("-", "--")
