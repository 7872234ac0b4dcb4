"""Drop and grow: which weights, how many, ties, and the laws that every rewiring keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

MASK = jnp.array([True, True, False, True, False, True, True, False, True, False])
SCORES = jnp.array([0.9, 0.05, 9.0, 0.4, 9.0, 0.6, 0.02, 9.0, 0.1, 9.0])


def kept(masks):
    return [int(mask.sum()) for mask in jax.tree.leaves(masks)]


def test_drop_takes_the_lowest_of_what_is_kept():
    left = jp.dynamic.drop({"a": MASK, "b": None}, {"a": SCORES, "b": None}, 3)
    np.testing.assert_array_equal(np.flatnonzero(left["a"]), [0, 3, 5])
    assert left["b"] is None


def test_grow_adds_the_highest_of_what_is_free():
    promise = jnp.array([9.0, 9.0, 0.3, 9.0, 0.7, 9.0, 9.0, 0.6, 9.0, 0.15])
    grown = jp.dynamic.grow({"a": MASK}, {"a": promise}, {"a": 2})
    np.testing.assert_array_equal(np.flatnonzero(grown["a"]), [0, 1, 3, 4, 5, 6, 7, 8])


def test_among_equals_the_lower_index_is_kept_and_grows():
    even = {"a": jnp.zeros(10)}
    np.testing.assert_array_equal(
        np.flatnonzero(jp.dynamic.drop({"a": MASK}, even, 2)["a"]), [0, 1, 3, 5]
    )
    np.testing.assert_array_equal(
        np.flatnonzero(jp.dynamic.grow({"a": MASK}, even, 2)["a"]), [0, 1, 2, 3, 4, 5, 6, 8]
    )


def test_nothing_and_everything():
    masks, scores = {"a": MASK}, {"a": SCORES}
    assert kept(jp.dynamic.drop(masks, scores, 6)) == [0]
    assert kept(jp.dynamic.grow(masks, scores, 4)) == [10]
    for verb in (jp.dynamic.drop, jp.dynamic.grow):
        np.testing.assert_array_equal(verb(masks, scores, 0)["a"], MASK)


def test_scores_of_minus_infinity_and_nan_keep_the_counts():
    # as many candidates without a finite score as with one: counts stay exact
    promise = jnp.where(jnp.arange(10) < 5, -jnp.inf, jnp.nan)
    assert kept(jp.dynamic.grow({"a": MASK}, {"a": promise}, 3)) == [9]
    assert kept(jp.dynamic.drop({"a": MASK}, {"a": promise}, 3)) == [3]


@pytest.mark.parametrize("fraction", [0.0, 1e-7, 0.1, 0.3, 0.3333333, 0.5, 0.7, 0.999, 1.0])
def test_portions_are_exact(fraction):
    masks = {"a": jnp.arange(1_000) < 731, "b": None, "c": jnp.arange(90) < 90}
    exact = [round(fraction * 10**7) * n / 10**7 for n in (731, 90)]
    for up, rounded in ((False, np.floor), (True, np.ceil)):
        found = jax.jit(lambda f, up=up: jp.dynamic.counts(masks, f, up))(fraction)
        assert [int(found["a"]), int(found["c"])] == [int(rounded(x)) for x in exact]
        assert found["b"] is None and found["a"].dtype == jnp.int32


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_portions_of_tens_where_float32_is_off(fraction):
    # float32 has 0.3 * 10 above 3 and 0.7 * 10 below 7
    masks = {"a": jnp.ones(10, bool)}
    for up in (False, True):
        assert int(jp.dynamic.counts(masks, fraction, up)["a"]) == round(10 * fraction)


@pytest.mark.full
def test_counts_may_differ_by_lane_and_vmap_is_a_loop():
    masks = jnp.stack([MASK, ~MASK, jnp.roll(MASK, 3)])
    scores = jnp.stack([SCORES, SCORES, -SCORES])
    counts = jnp.array([1, 2, 3])

    def rewire(mask, score, count):
        left = jp.dynamic.drop({"a": mask}, {"a": score}, {"a": count})
        return jp.dynamic.grow(left, {"a": -score}, {"a": count})["a"]

    stacked = jax.vmap(rewire)(masks, scores, counts)
    for lane in range(3):
        alone = rewire(masks[lane], scores[lane], counts[lane])
        np.testing.assert_array_equal(stacked[lane], alone)
        assert alone.sum() == masks[lane].sum()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "count"),
    [(jp.dynamic.drop, 7), (jp.dynamic.drop, -1), (jp.dynamic.grow, 5), (jp.dynamic.grow, -1)],
)
def test_more_than_there_are(verb, count):
    masks = {"layer": {"kernel": MASK}}
    with pytest.raises(ValueError, match="'layer/kernel', which keeps 6 of 10 weights") as error:
        verb(masks, {"layer": {"kernel": SCORES}}, count)
    assert f"{verb.__name__}: got the number {count}" in str(error.value)
    assert "dynamic.counts(masks, fraction)" in str(error.value)
