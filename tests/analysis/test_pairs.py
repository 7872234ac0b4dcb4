"""A matrix over all pairs of seeds is a loop over the pairs, and its summaries worked by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.analysis import connected_components, instability, jackknife, loss_along

SEEDS = 5
KEYS = jax.random.split(jax.random.key(0), SEEDS)
STACK = {
    "kernel": jax.vmap(lambda key: jax.random.normal(key, (4, 3)))(KEYS),
    "bias": jnp.ones((SEEDS, 3)),
}
MASKS = {"kernel": STACK["kernel"] > 0, "bias": None}


def seed(stack, i):
    return jax.tree.map(lambda x: x[i], stack)


def distance(a, b):
    return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), a, b))))


def loss(params):
    x = jnp.linspace(-1, 1, 8).reshape(2, 4)
    return jnp.mean((jnp.tanh(x @ params["kernel"]) - 1) ** 2)


# --- pairwise ------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("chunk", [1, 4, 15, 100])
@pytest.mark.parametrize(
    ("f", "stack"),
    [(distance, STACK), (jp.overlap, MASKS), (partial(jp.barrier, loss), STACK)],
    ids=["distance", "overlap", "barrier"],
)
def test_pairwise_is_a_loop_over_pairs(f, stack, chunk, wrap):
    matrix = wrap(lambda stack: jp.pairwise(f, stack, chunk=chunk))(stack)
    loop = [[f(seed(stack, i), seed(stack, j)) for j in range(SEEDS)] for i in range(SEEDS)]
    assert matrix.shape == (SEEDS, SEEDS)
    np.testing.assert_allclose(matrix, np.array(loop), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(matrix, matrix.T)  # to the bit: each pair is computed once


def test_the_diagonal_is_computed_or_known():
    assert jnp.diag(jp.pairwise(jp.overlap, MASKS)).tolist() == [1.0] * SEEDS
    assert jnp.diag(jp.pairwise(partial(jp.barrier, loss), STACK)).tolist() == [0.0] * SEEDS
    calls = []

    def counted(a, b):
        calls.append(1)
        return jp.overlap(a, b)

    known = jp.pairwise(counted, MASKS, diagonal=1.0)
    assert len(calls) == 10
    np.testing.assert_array_equal(known, jp.pairwise(jp.overlap, MASKS))


def test_a_tree_of_scalars_is_a_tree_of_matrices():
    both = jp.pairwise(lambda a, b: {"d": distance(a, b), "n": (jnp.int32(3), 1.0)}, STACK)
    assert both["d"].shape == both["n"][0].shape == both["n"][1].shape == (SEEDS, SEEDS)
    assert both["n"][0].dtype == jnp.int32
    np.testing.assert_array_equal(both["d"], jp.pairwise(distance, STACK))


@pytest.mark.parametrize("chunk", [1, 4])
def test_an_array_stands_behind_the_seeds(chunk):
    along = lambda a, b: loss_along(loss, a, b, 3)[1]
    values = jp.pairwise(along, STACK, chunk=chunk)
    assert values.shape == (SEEDS, SEEDS, 3)
    np.testing.assert_allclose(values[1, 3], along(seed(STACK, 1), seed(STACK, 3)), rtol=1e-5)
    np.testing.assert_array_equal(values, values.swapaxes(0, 1))


def test_seeds_that_are_one_seed():
    same = jax.tree.map(lambda x: jnp.stack([x[0], x[0], x[1]]), STACK)
    barriers = jp.pairwise(partial(instability, loss), same)
    assert float(barriers[0, 1]) == 0 and float(barriers[0, 2]) > 0


def test_it_holds_one_pair_in_memory():
    big = {"kernel": jnp.ones((16, 256, 256))}
    f = jax.jit(lambda stack: jp.pairwise(distance, stack))
    analysis = f.lower(big).compile().memory_analysis()
    one = 256 * 256 * 4
    assert analysis.temp_size_in_bytes < 4 * one  # the stack is 16, all pairs would be 272


def test_two_seeds_and_seeds_of_numpy():
    two = {"w": np.array([1.0, 4.0], np.float32)}
    assert jp.pairwise(lambda a, b: jnp.abs(a["w"] - b["w"]), two).tolist() == [[0, 3], [3, 0]]


@pytest.mark.parametrize(
    ("stack", "fragments"),
    [
        (
            {"a": jnp.ones((3, 2)), "b": {"c": jnp.ones((4, 2))}},
            ["same number of seeds; 'a' has 3 and 'b/c' 4, of shape (4, 2)", "jnp.stack"],
        ),
        ({"a": jnp.ones((1, 2))}, ["at least two seeds; this stack has 1"]),
        ({"a": jnp.ones((2, 2)), "b": 1.0}, ["a leading axis of seeds; 'b' is a scalar"]),
        ({"a": None}, ["at least one array; every leaf is None"]),
        ([seed(STACK, 0), seed(STACK, 1)], ["'0/bias' has 3 and '0/kernel' 4", "separate trees"]),
    ],
    ids=["lengths", "one seed", "scalar", "None", "list"],
)
def test_what_is_no_stack(stack, fragments):
    with pytest.raises(ValueError) as error:
        jp.pairwise(distance, stack)
    for fragment in fragments:
        assert fragment in str(error.value)


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True, None])
def test_pairwise_of_no_chunk(chunk):
    with pytest.raises(ValueError, match="chunk is how many pairs at once, at least 1; got"):
        jp.pairwise(distance, STACK, chunk=chunk)


def test_an_error_says_for_which_pair():
    diverged = {"w": jnp.array([1.0, 2.0, jnp.nan])}
    with pytest.raises(ValueError, match="the loss is nan at alpha") as error:
        jp.pairwise(partial(jp.barrier, lambda p: p["w"] ** 2), diverged)
    assert error.value.__notes__ == ["This was for the pair of seeds (0, 2)."]


# --- connected_components ------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_components_are_joined_by_way_of_others(wrap):
    matrix = np.full((6, 6), 9.0)
    for i, j in ((0, 3), (3, 5), (5, 1), (2, 4)):  # a chain of four, and a pair
        matrix[i, j] = matrix[j, i] = 0.5
    labels = wrap(lambda m: connected_components(m, 2.0))(jnp.asarray(matrix))
    assert labels.tolist() == [0, 0, 1, 0, 1, 0]


def test_a_long_chain_is_one_component():
    for seeds in (2, 5, 33):
        far = jnp.abs(jnp.arange(seeds)[:, None] - jnp.arange(seeds)[None])
        assert connected_components(far, 2).tolist() == [0] * seeds
        assert connected_components(far, 1).tolist() == list(range(seeds))


def test_the_threshold_joins_nothing_itself_and_nan_neither():
    assert connected_components(jnp.array([[0, 2.0], [2.0, 0]]), 2.0).tolist() == [0, 1]
    assert connected_components(jnp.full((2, 2), jnp.nan), 2.0).tolist() == [0, 1]


# --- jackknife -----------------------------------------------------------------------------------


def leave_one_out(matrix):
    n = len(matrix)

    def mean(seeds):
        return np.mean([matrix[i, j] for i in seeds for j in seeds if i < j])

    without = [mean([j for j in range(n) if j != i]) for i in range(n)]
    deviations = np.array(without) - np.mean(without)
    return mean(range(n)), np.sqrt((n - 1) / n * np.sum(deviations**2))


@pytest.mark.parametrize("seeds", [3, 4, 9])
def test_jackknife_leaves_one_out(seeds):
    values = np.random.default_rng(seeds).normal(size=(seeds, seeds))
    matrix = values + values.T
    mean, error = jax.jit(jackknife)(matrix)
    assert (float(mean), float(error)) == pytest.approx(leave_one_out(matrix), rel=1e-4)


def test_jackknife_by_hand():
    # pairs 1, 2, 3: the mean is 2; without one seed it is 3, 2, 1
    matrix = np.array([[0, 1, 2], [1, 0, 3], [2, 3, 0.0]])
    estimate = jackknife(matrix)
    assert float(estimate.mean) == 2
    assert float(estimate.standard_error) == pytest.approx(np.sqrt(2 / 3 * 2))


def test_jackknife_leaves_the_diagonal_out_and_is_exact_for_equal_pairs():
    estimate = jackknife(jnp.where(jnp.eye(4, dtype=bool), jnp.nan, 0.1))
    assert (float(estimate.mean), float(estimate.standard_error)) == (
        pytest.approx(0.1),
        pytest.approx(0),
    )


def test_summaries_of_no_matrix():
    for summary in (jackknife, partial(connected_components, threshold=1)):
        with pytest.raises(ValueError, match=r"one matrix \(seeds, seeds\).* got shape \(3, 2\)"):
            summary(np.ones((3, 2)))
    with pytest.raises(ValueError, match="at least 3 seeds; got 2"):
        jackknife(np.ones((2, 2)))


def test_a_diagonal_keeps_its_value_beside_integers():
    stack = {"w": jnp.arange(3)}
    matrix = jp.pairwise(lambda a, b: a["w"] + b["w"], stack, diagonal=0.5)
    np.testing.assert_array_equal(matrix, [[0.5, 1, 2], [1, 0.5, 3], [2, 3, 0.5]])
