"""Pictures of methods are pictures, say what they are of, and hold what made them."""

import numpy as np
import pytest
from PIL import Image

from recipes.common.figures import gallery
from recipes.common.figures.gallery import Drawing
from tests.quick import quick

LINES = "x = 1  # ≠ 2\n"


def over_time(times, pixels):
    draw = np.random.default_rng(0).uniform
    return draw(size=(times, 3)), pixels, draw(size=(times, 100)), np.linspace(1, 0.4, times)


DRAWINGS = {
    "step": over_time(400, np.random.default_rng(1).uniform(size=(400, 64))),
    "neurons": over_time(400, np.full((400, 64), 0.5)),
    "gates": over_time(400, np.zeros((400, 64))),
    "phase": over_time(4, np.random.default_rng(1).uniform(size=(4, 64))),
    "scales": (np.random.default_rng(1).uniform(size=(400, 150)),),
    "soup": (np.random.default_rng(1).uniform(size=(3, 11)), np.float32(0.1)),
    "rates": (np.linspace(1, 0, 400), {"A": np.ones(100), "B": np.zeros(100)}),
}


@pytest.mark.parametrize("name", quick(DRAWINGS))
def test_a_picture_holds_its_lines(name, tmp_path):
    kind = "step" if name == "neurons" else name
    path = tmp_path / "picture.png"
    path.write_bytes(gallery.draw(Drawing(kind, DRAWINGS[name]), LINES))
    assert gallery.source(path) == LINES
    assert path.stat().st_size < 30_000
    with Image.open(path) as image:
        assert image.width == 990
        assert np.ptp(np.asarray(image.convert("L"))) > 150


def test_every_kind_is_drawn_here():
    assert set(gallery.KINDS) <= set(DRAWINGS)


def test_a_picture_that_holds_none(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "plain.png")
    assert gallery.source(tmp_path / "plain.png") == ""
