"""Figures are PNG of the size that they should be; how they look, a person has to say."""

import io

import numpy as np
import pytest
from PIL import Image

from recipes.common.figures import pairs
from recipes.common.figures.pairs import Forks, Matrix, Paths
from tests.quick import quick


def size(png):
    return Image.open(io.BytesIO(png)).size


@pytest.mark.parametrize("seeds", quick([2, 8, 40]))
def test_heat_maps(seeds):
    values = np.random.default_rng(0).random((seeds, seeds))
    maps = {"a": Matrix(values), "b": Matrix(values, "{:.2f}", 0, 1)}
    assert size(pairs.heat_maps(maps)) == (1180, 580)


def test_heat_map_of_nothing_but_zeros():
    pairs.heat_maps({"a": Matrix(np.zeros((3, 3)))})


def test_what_is_not_measured_is_written_as_such(monkeypatch):
    """Of barriers at chance: no color, and n/a in place of a number."""
    figures = []
    monkeypatch.setattr(pairs, "png", lambda figure: figures.append(figure) or b"")
    pairs.heat_maps({"a": Matrix(np.full((2, 2), np.nan)), "b": Matrix(np.ones((2, 2)))})
    first, second = figures[0].axes[:2]
    assert [text.get_text() for text in first.texts] == ["n/a", "n/a"]
    assert [text.get_text() for text in second.texts] == ["1.0", "1.0"]
    pairs.over_forks([0, 5], {"a": Forks([np.full(3, np.nan)] * 2, [np.full(3, 0.1)] * 2)}, 2.0)


def test_along_paths():
    alphas, values = np.linspace(0, 1, 11), np.random.default_rng(0).random((28, 11))
    panels = {
        "a": Paths(alphas, values, {"x": values[0], "y": values[1]}),
        "b": Paths(alphas, values),
    }
    assert size(pairs.along_paths(panels, 2.0)) == (1400, 600)
    pairs.along_paths({"a": Paths(alphas, values[:1])})


def test_over_forks():
    each = [np.full(6, 0.1), np.full(6, 0.05), np.zeros(6)]
    arms = {arm: Forks(each, each) for arm in ("dense", "sparse")}
    assert size(pairs.over_forks([0, 100, 1000], arms, 2.0)) == (1400, 560)
