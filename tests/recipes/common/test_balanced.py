"""Balanced batches: as many of each class, by key, and what a class without examples says."""

import jax
import numpy as np
import pytest

from recipes.common.balanced import balanced_rows
from recipes.common.errors import RecipeError

LABELS = np.random.default_rng(0).integers(0, 4, 200)


def test_as_many_of_each_and_none_twice():
    rows = np.asarray(balanced_rows(jax.random.key(0), LABELS, 4, 9))
    assert np.bincount(LABELS[rows]).tolist() == [9] * 4
    assert len(set(rows.tolist())) == 36


def test_it_is_its_key_also_under_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda key: balanced_rows(key, LABELS, 4, 9)
    lanes = jax.jit(jax.vmap(draw))(keys)
    for lane, key in zip(lanes, keys, strict=True):
        np.testing.assert_array_equal(lane, draw(key))
    assert (lanes[0] != lanes[1]).any()


def test_every_example_of_a_class_is_as_likely():
    keys = jax.random.split(jax.random.key(1), 2000)
    rows = np.asarray(jax.vmap(lambda key: balanced_rows(key, LABELS, 4, 9))(keys))
    drawn = np.bincount(rows.ravel(), minlength=200) / 2000
    # the standard error is below 0.011
    np.testing.assert_allclose(drawn, 9 / np.bincount(LABELS)[LABELS], atol=0.05)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[LABELS != 2], "class 2 has none of"),
        (np.array([0, 1, 2, 3, 3, 2, 1]), "class 0 has 1 of 7"),
    ],
)
def test_a_class_with_too_few_examples(labels, message):
    with pytest.raises(RecipeError, match=message) as error:
        balanced_rows(jax.random.key(0), labels, 4, 2)
    assert "a balanced batch needs 2 examples of each of 4 classes" in str(error.value)
    assert "Take fewer of each" in str(error.value)
