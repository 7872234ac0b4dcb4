"""Every method's lines train a network, and its picture was made by them."""

import jax
import pytest

from recipes import gallery
from recipes.common.figures.gallery import KINDS, source
from tests.quick import quick
from tests.recipes.running import exit_code

COMMON, METHODS = gallery.blocks(gallery.PAGE.read_text())


@pytest.mark.parametrize("name", quick(METHODS))
def test_its_lines_train_a_network(name):
    """In shapes only: nothing is compiled."""
    drawing = jax.eval_shape(lambda: gallery.outcome(gallery.run_lines(COMMON, METHODS[name])))
    assert drawing.kind in KINDS
    if drawing.kind == "step":
        shapes = [share.shape[1:] for share in drawing.arrays]
        assert shapes[0] in [(2,), (3,)] and shapes[1:] == [(64,), (100,), ()]


@pytest.mark.parametrize("name", METHODS)
def test_its_picture_is_of_these_lines(name):
    picture = gallery.PAGE.parent / "figures" / "methods" / f"{gallery.slug(name)}.png"
    assert f"](figures/methods/{picture.name})" in gallery.PAGE.read_text()
    assert source(picture) == COMMON + METHODS[name], "run python -m recipes.gallery"


def test_no_picture_is_left_over():
    drawn = {path.stem for path in (gallery.PAGE.parent / "figures" / "methods").glob("*.png")}
    assert drawn == {gallery.slug(name) for name in METHODS}


def test_one_method_is_drawn_again(tmp_path):
    (path,) = gallery.gallery(gallery.Config(out=tmp_path, only="learning rates"))
    assert path.name == "learning-rates-of-retraining.png"
    assert source(path) == COMMON + METHODS["Learning rates of retraining"]


def test_a_name_that_is_none(tmp_path, capsys):
    assert exit_code(gallery, "--only", "dropout", "--out", str(tmp_path / "x")) == 2
    assert "'dropout' is in the name of no method" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
