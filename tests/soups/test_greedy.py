"""A greedy soup takes from the best on what does not lower its held-out score."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

WRAPS = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
# in the stack C, A, B: each is a row of the identity, so that an average shows who is in it
MEMBERS = {"w": jnp.eye(3)[jnp.array([2, 0, 1])], "b": None}
# accuracies of the averages of A, B and C
SCORES = {(1, 0, 0): 0.90, (0, 1, 0): 0.89, (0, 0, 1): 0.88, (1, 1, 0): 0.905, (1, 1, 1): 0.905}


def look_up(params, table=SCORES):
    """The score of the average with these members; -1 of any other."""
    taken = params["w"] > 0
    score = jnp.float32(-1)
    for members, value in table.items():
        score = jnp.where((taken == jnp.array(members, bool)).all(), value, score)
    return score


@WRAPS
def test_ties_are_accepted(wrap):
    found = wrap(partial(jp.soups.greedy, score=look_up))(MEMBERS)
    assert found.chosen.tolist() == [True, True, True]
    np.testing.assert_allclose(found.params["w"], [1 / 3] * 3, rtol=1e-6)
    assert found.params["b"] is None
    assert float(found.score) == pytest.approx(0.905)
    np.testing.assert_allclose(found.scores, [0.88, 0.90, 0.89], rtol=1e-6)  # as in the stack


@WRAPS
def test_what_lowers_the_score_is_left_out_and_the_next_still_tried(wrap):
    table = SCORES | {(1, 1, 0): 0.899, (1, 0, 1): 0.91}
    found = wrap(partial(jp.soups.greedy, score=partial(look_up, table=table)))(MEMBERS)
    assert found.chosen.tolist() == [True, True, False]  # C and A
    np.testing.assert_allclose(found.params["w"], [0.5, 0, 0.5])
    assert float(found.score) == pytest.approx(0.91)


def test_where_nothing_helps_it_is_exactly_the_best_member():
    members = {"w": jnp.array([[0.1, 0.7], [0.3, -0.2], [0.9, 0.9]])}
    found = jp.soups.greedy(members, lambda p: -jnp.abs(p["w"] - jnp.array([0.3, -0.2])).sum())
    assert found.chosen.tolist() == [False, True, False]
    np.testing.assert_array_equal(found.params["w"], members["w"][1])
    assert found.score == found.scores[1]


def test_equal_members_are_tried_in_the_order_of_the_stack():
    table = {(1, 0, 0): 0.9, (0, 1, 0): 0.9, (0, 0, 1): 0.9}
    found = jp.soups.greedy(MEMBERS, partial(look_up, table=table))
    assert found.chosen.tolist() == [True, False, False]


def test_a_member_that_diverged_is_never_taken():
    members = {"w": jnp.array([jnp.nan, 3.0, 1.0])}
    found = jp.soups.greedy(members, lambda p: -jnp.abs(p["w"] - 2))
    assert found.chosen.tolist() == [False, True, True]
    assert found.params["w"] == 2


def test_every_average_is_finished_before_it_is_scored():
    def finished(stack, weights):  # as recalibrated statistics are
        made = jp.soup(stack, weights)
        return {**made, "statistic": 10 * made["w"]}

    members = {"w": jnp.array([1.0, 3.0]), "statistic": jnp.array([jnp.nan, jnp.nan])}
    found = jp.soups.greedy(members, lambda p: -jnp.abs(p["statistic"] - 20), finished)
    assert found.params["statistic"] == 20
    assert found.scores.tolist() == [-10, -10]


def test_a_vmapped_greedy_soup_is_a_loop_of_them():
    stacks = {"w": jax.random.normal(jax.random.key(0), (6, 4, 3))}
    greedy = jax.jit(partial(jp.soups.greedy, score=lambda p: -jnp.square(p["w"] - 0.1).sum()))
    together = jax.jit(jax.vmap(greedy))(stacks)
    assert len({tuple(chosen) for chosen in together.chosen.tolist()}) > 1
    for i in range(6):
        alone = greedy({"w": stacks["w"][i]})
        assert alone.chosen.tolist() == together.chosen[i].tolist()
        np.testing.assert_allclose(alone.params["w"], together.params["w"][i], rtol=1e-6)
        assert alone.score >= alone.scores.max()


def test_without_a_held_out_score_it_raises():
    with pytest.raises(TypeError, match=r"chooses members by a held-out score.*validation.*None"):
        jp.soups.greedy(MEMBERS, None)
    with pytest.raises(TypeError, match="score"):
        jp.soups.greedy(MEMBERS)
    with pytest.raises(ValueError, match=r"the score must be a scalar; it has shape \(3,\)"):
        jp.soups.greedy(MEMBERS, lambda params: params["w"])
    with pytest.raises(ValueError, match="no seeds"):
        jp.soups.greedy({"w": jnp.ones((0, 2))}, look_up)
