"""Sets of images from a folder, and lanes that train on them."""

import numpy as np
import pytest

from recipes.common import data, sets
from recipes.common.folder import RecipeError


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_examples=50)


def stored(digits, **changed):
    """The content of a file of recipes.distill: two sets of an image a class."""
    return {
        "images": np.zeros((2, 10, 8, 8, 1), np.float32),
        "labels": np.arange(10, dtype=np.int32),
        "mean": digits.mean,
        "std": digits.std,
        "dataset": "digits",
    } | changed


def test_the_first_sets_of_a_folder(digits, tmp_path):
    images = np.arange(2 * 640, dtype=np.float32).reshape(2, 10, 8, 8, 1)
    np.savez(tmp_path / sets.FILE, **stored(digits, images=images))
    loaded = sets.load(tmp_path, "digits", digits, 1)
    np.testing.assert_array_equal(loaded.images, images[:1])
    assert loaded.labels.tolist() == [list(range(10))]
    assert loaded.examples == 10 and loaded.per_class(10) == 1


def test_sets_of_classes_have_their_labels():
    images = np.arange(2 * 3 * 2).reshape(2, 3, 2, 1, 1, 1)
    made = sets.of_classes(images)
    assert made.images.ravel().tolist() == list(range(12))
    assert made.labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 2


MISTAKES = {
    "was distilled from mnist, and this run has digits": {"dataset": "mnist"},
    r"has images of shape \(28, 28, 1\), and digits has \(8, 8, 1\)": {
        "images": np.zeros((2, 10, 28, 28, 1), np.float32)
    },
    r"was normalized by the mean \(3\) and deviation": {"mean": np.array([3.0])},
    "has sets of 1 seeds, and this run has 2 seeds; distill more, or take --seeds 1": {
        "images": np.zeros((1, 10, 8, 8, 1), np.float32)
    },
    "has images with nan or inf": {"images": np.full((2, 10, 8, 8, 1), np.nan, np.float32)},
}


@pytest.mark.parametrize("said", MISTAKES)
def test_sets_that_do_not_fit_are_refused_by_path(said, digits, tmp_path):
    np.savez(tmp_path / sets.FILE, **stored(digits, **MISTAKES[said]))
    with pytest.raises(RecipeError, match=f"'{tmp_path}/distilled.npz' {said}"):
        sets.load(tmp_path, "digits", digits, 2)


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_files_that_are_no_sets_are_refused_by_path(content, digits, tmp_path):
    if content is None:  # a part is missing
        np.savez(tmp_path / sets.FILE, images=np.zeros(3))
    else:
        (tmp_path / sets.FILE).write_bytes(content)
    with pytest.raises(RecipeError, match=r"distilled\.npz' is no file of recipes.distill"):
        sets.load(tmp_path, "digits", digits, 2)
