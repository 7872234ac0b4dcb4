"""Planes are PNG of the right size whatever the losses are; how they look, a person has to say."""

import io

import numpy as np
import pytest
from PIL import Image

from recipes.common.figures import planes
from recipes.common.figures.planes import Curvature, Line, Mark, Panel, curvature

MARKS = [Mark("seed 0", 0.0, 0.0), Mark("seed 1", 2.0, 0.0), Mark("seed 2", 1.0, 1.5)]


def size(png):
    return Image.open(io.BytesIO(png)).size


def panel(losses=None):
    xs, ys = planes.square(MARKS, 5)
    own = np.exp(np.add.outer(ys**2, xs**2)) if losses is None else np.asarray(losses)
    return Panel(xs, ys, own, MARKS)


def test_a_square_around_the_marks():
    xs, ys = planes.square(MARKS, 5)
    assert xs.dtype == ys.dtype == np.float32 and len(xs) == len(ys) == 5
    np.testing.assert_allclose(xs[[0, -1]], (1 - 1.7, 1 + 1.7), rtol=1e-6)
    np.testing.assert_allclose(ys[[0, -1]], (0.75 - 1.7, 0.75 + 1.7), rtol=1e-6)


def test_planes():
    assert size(planes.contours({"One": panel()}, "loss", "x", "y")) == (790, 650)
    assert size(planes.contours({"A": panel(), "B": panel()}, "loss", "x", "y")) == (1400, 650)


def test_planes_with_walls_holes_and_no_slope():
    rough = np.geomspace(1e-12, 1e12, 25).reshape(5, 5)
    rough[0, 0], rough[4, 4] = np.nan, np.inf
    for losses in (rough, np.ones((5, 5)), np.zeros((5, 5)), np.full((5, 5), 1e-9)):
        planes.contours({"Plane": panel(losses)}, "loss", "x", "y")


def test_planes_and_lines():
    alphas = np.linspace(0, 1, 5)
    lines = [Line("as trained", alphas, alphas), Line("matched", alphas, alphas**2)]
    panels, below = {"A": panel(), "B": panel()}, {"A": lines, "B": lines}
    assert size(planes.planes_and_lines(panels, "loss", below, "loss")) == (1400, 1080)


@pytest.mark.parametrize("seeds", [1, 3])
def test_curvature(seeds):
    grid = np.linspace(-1, 5, 50)
    density = np.stack([np.exp(-((grid - i) ** 2)) for i in range(seeds)])
    own = Curvature(np.arange(1.0, 4.0)[::-1] * np.ones((seeds, 1)), grid, density)
    png = curvature({"dense": own, "sparse": own})
    assert Image.open(io.BytesIO(png)).size == (1400, 580)
