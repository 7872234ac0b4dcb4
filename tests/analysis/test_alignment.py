"""Weight matching: known permutations come back exactly, and barriers fall to 0."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.analysis import line, match_weights, permute
from jaxprune.coupling import check_coupling
from tests.coupling.test_stated import COUPLING, RESIDUAL, Residual, noisy, raised, random_order

KEY = jax.random.key(0)

# the card: three hidden neurons
CARD_A = {"in": jnp.array([[1.0, 0, 2], [0, 3, 1]]), "out": jnp.array([[1.0, 0], [0, 2], [3, 1]])}
CARD = {"h": [("in", 1), ("out", 0)]}


def mlp(key, sizes=(6, 16, 12, 9, 3)):
    """Params of dense layers, and their coupling."""
    keys = jax.random.split(key, 2 * len(sizes))
    params = {
        f"Dense_{i}": {
            "kernel": jax.random.normal(keys[2 * i], (n, m)) / np.sqrt(n),
            "bias": jax.random.normal(keys[2 * i + 1], (m,)),
        }
        for i, (n, m) in enumerate(itertools.pairwise(sizes))
    }
    return params, jp.analyze(outputs, params, jnp.ones((1, sizes[0]))).coupling()


def outputs(params, x):
    for i in range(len(params)):
        layer = params[f"Dense_{i}"]
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"][None]
    return x


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def similarity(a, b):
    return float(
        sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    )


# --- permuting -----------------------------------------------------------------------------------


def test_the_card():
    b = permute(CARD_A, CARD, {"h": jnp.array([2, 0, 1])})
    c = CARD_A["in"].T @ b["in"] + CARD_A["out"] @ b["out"].T
    np.testing.assert_array_equal(c, [[5, 2, 0], [5, 0, 13], [15, 5, 5]])
    matched = match_weights(KEY, CARD_A, b, CARD)
    assert matched["h"].tolist() == [1, 2, 0]
    assert_trees_equal(permute(b, CARD, matched), CARD_A)
    masks = jax.tree.map(lambda w: w != 0, CARD_A)
    moved = permute(masks, CARD, {"h": jnp.array([2, 0, 1])})
    assert_trees_equal(permute(moved, CARD, matched), masks)


@pytest.mark.full
def test_masks_move_with_their_weights(params):
    masks = jp.select(jp.magnitude(jp.kernels(params)), jp.global_threshold, 0.5)
    order = {"hidden": jax.random.permutation(KEY, 8)}
    moved = permute(masks, COUPLING, order)
    assert jp.overlap(masks, moved) < 1
    assert_trees_equal(
        jp.apply_masks(permute(params, COUPLING, order), moved),
        permute(jp.apply_masks(params, masks), COUPLING, order),
    )
    back = match_weights(KEY, params, permute(params, COUPLING, order), COUPLING)
    assert jp.overlap(masks, permute(moved, COUPLING, back)) == 1


def test_a_stack_is_permuted_lane_by_lane(params):
    masks = jp.select(jp.magnitude(jp.kernels(params)), jp.uniform, 0.5)
    stack = jax.tree.map(lambda m: jnp.stack([m, ~m]), masks)
    orders = jnp.stack([jax.random.permutation(jax.random.key(i), 8) for i in range(2)])
    move = lambda m, order: permute(m, COUPLING, {"hidden": order})
    lanes = jax.jit(jax.vmap(move))(stack, orders)
    for i in range(2):
        one = move(jax.tree.map(lambda m, i=i: m[i], stack), orders[i])
        assert_trees_equal(jax.tree.map(lambda m, i=i: m[i], lanes), one)


def test_a_group_that_is_not_named_stays():
    params, coupling = mlp(KEY)
    moved = permute(params, coupling, {"Dense_1": jnp.arange(12)[::-1]})
    assert_trees_equal(moved["Dense_0"], params["Dense_0"])
    assert (moved["Dense_1"]["bias"] == params["Dense_1"]["bias"][::-1]).all()


# --- matching ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_known_permutation_of_an_mlp_is_recovered_exactly(seed):
    a, coupling = mlp(jax.random.key(seed))
    orders = random_order(check_coupling(coupling, a), seed)
    b = permute(a, coupling, orders)
    matched = match_weights(jax.random.key(seed), a, b, coupling, starts=3)
    assert {g: matched[g].dtype for g in matched} == dict.fromkeys(orders, jnp.int32)
    for group, order in orders.items():
        np.testing.assert_array_equal(matched[group], np.argsort(order))
    assert_trees_equal(permute(b, coupling, matched), a)


def test_its_barrier_falls_to_zero():
    a, coupling = mlp(KEY)
    b = permute(a, coupling, random_order(check_coupling(coupling, a)))
    x = jax.random.normal(jax.random.key(9), (64, 6))
    y = outputs(a, x)
    loss = lambda params: jnp.mean((outputs(params, x) - y) ** 2)

    def peak(b):
        return line(loss, a, jax.tree.map(jnp.subtract, b, a), jnp.linspace(0, 1, 11)).max()

    assert peak(b) > 0.1
    aligned = permute(b, coupling, match_weights(KEY, a, b, coupling))
    assert peak(aligned) < 1e-10
    np.testing.assert_allclose(outputs(aligned, x), outputs(b, x), rtol=1e-5, atol=1e-6)


@pytest.mark.full
def test_of_a_residual_network():
    variables, _ = noisy(Residual(), 3, 5)
    a = variables["params"]
    b = permute(a, RESIDUAL, random_order(check_coupling(RESIDUAL, a), 4))
    assert_trees_equal(permute(b, RESIDUAL, match_weights(KEY, a, b, RESIDUAL)), a)


def test_of_a_flattened_axis():
    a = {
        "conv": jax.random.normal(KEY, (3, 3, 2, 5)),
        "dense": jax.random.normal(jax.random.key(1), (20, 3)),
    }
    coupling = {"g": [("conv", 3), ("dense", 0, 4)]}
    b = permute(a, coupling, {"g": jnp.array([3, 1, 4, 0, 2])})
    assert_trees_equal(permute(b, coupling, match_weights(KEY, a, b, coupling)), a)


def test_two_networks_get_nearer_and_keep_their_function():
    (a, coupling), (b, _) = mlp(KEY), mlp(jax.random.key(1))
    matched = match_weights(KEY, a, b, coupling)
    moved = permute(b, coupling, matched)
    assert similarity(a, moved) > similarity(a, b) + 1
    x = jax.random.normal(jax.random.key(9), (5, 6))
    np.testing.assert_allclose(outputs(moved, x), outputs(b, x), rtol=1e-5, atol=1e-6)
    # a local optimum: no group alone can be improved
    again = match_weights(KEY, a, moved, coupling)
    assert similarity(a, permute(moved, coupling, again)) == pytest.approx(
        similarity(a, moved), rel=1e-6
    )


@pytest.mark.full
def test_small_groups_are_matched_as_well_as_they_can_be():
    (a, coupling), (b, _) = (mlp(jax.random.key(k), (3, 4, 4, 2)) for k in (0, 1))
    every = itertools.product(itertools.permutations(range(4)), repeat=2)
    best = max(
        similarity(a, permute(b, coupling, dict(zip(coupling, map(jnp.array, o), strict=True))))
        for o in every
    )
    matched = match_weights(KEY, a, b, coupling, starts=10)
    assert similarity(a, permute(b, coupling, matched)) == pytest.approx(best, rel=1e-6)


def test_more_starts_are_never_worse():
    (a, coupling), (b, _) = (mlp(jax.random.key(k)) for k in (0, 1))
    values = [
        similarity(a, permute(b, coupling, match_weights(KEY, a, b, coupling, starts=n)))
        for n in (1, 2, 8)
    ]
    assert values == sorted(values)


def test_equal_networks_stay_as_they_are():
    a, coupling = mlp(KEY)
    matched = match_weights(KEY, a, a, coupling)
    assert all((order == jnp.arange(len(order))).all() for order in matched.values())
    nothing = jax.tree.map(jnp.zeros_like, a)
    matched = match_weights(KEY, a, nothing, coupling)
    assert all((order == jnp.arange(len(order))).all() for order in matched.values())


@pytest.mark.full
@pytest.mark.parametrize("starts", [1, 2])
def test_inside_jit(starts):
    a, coupling = mlp(KEY)
    orders = [random_order(check_coupling(coupling, a), k) for k in (1, 2)]
    stack = jax.tree.map(lambda *w: jnp.stack(w), *(permute(a, coupling, o) for o in orders))
    match = lambda b: match_weights(KEY, a, b, coupling, starts=starts)
    matched = jax.jit(jax.vmap(match))(stack)
    for i, wanted in enumerate(orders):
        for group, order in wanted.items():
            np.testing.assert_array_equal(matched[group][i], np.argsort(order))
            assert matched[group].dtype == jnp.int32


# --- bad input -----------------------------------------------------------------------------------


def test_permutations_that_are_none(params):
    say = lambda order: raised(lambda: permute(params, COUPLING, {"hidden": order}))
    assert "group 'hidden' has 8 neurons" in say(jnp.arange(7)) and "(7,)" in say(jnp.arange(7))
    assert "with repeated or foreign numbers" in say(jnp.zeros(8, jnp.int32))
    assert "with repeated or foreign numbers" in say(jnp.arange(1, 9))
    said = raised(lambda: permute(params, COUPLING, {"wide": jnp.arange(8)}))
    assert "there is no group 'wide' in the coupling; it has 'hidden'" in said


def test_trees_that_differ(params):
    said = raised(lambda: match_weights(KEY, params, {"Dense_0": params["Dense_0"]}, COUPLING))
    assert "match_weights: b must be like the params: missing: 'Dense_1/bias'" in said
    with pytest.raises(ValueError, match="which is no leaf of these params"):
        match_weights(KEY, params, params, {"g": [("Dense_7/kernel", 0)]})


@pytest.mark.parametrize("odd", [jnp.nan, jnp.inf])
def test_weights_that_diverged_are_named(odd):
    params = {"in": jnp.ones((2, 3)), "out": jnp.ones((3, 2))}
    spoiled = {**params, "out": params["out"].at[0, 1].set(odd)}
    coupling = {"h": [("in", 1), ("out", 0)]}
    for a, b, tree in ((params, spoiled, "b"), (spoiled, params, "a")):
        with pytest.raises(ValueError, match=f"'out' of {tree} has entries that are nan or inf"):
            match_weights(jax.random.key(0), a, b, coupling)


def test_two_axes_of_one_leaf():
    square = {"w": jnp.ones((3, 3))}
    coupling = {"h": [("w", 0), ("w", 1)]}
    assert "indexes two axes of 'w'" in raised(lambda: match_weights(KEY, square, square, coupling))
    moved = permute({"w": jnp.arange(9).reshape(3, 3)}, coupling, {"h": jnp.array([1, 0, 2])})
    assert moved["w"].tolist() == [[4, 3, 5], [1, 0, 2], [7, 6, 8]]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
@pytest.mark.parametrize("argument", ["starts", "sweeps"])
def test_numbers_below_one(params, argument, value):
    said = raised(lambda: match_weights(KEY, params, params, COUPLING, **{argument: value}))
    assert f"match_weights: {argument} must be at least 1; got {value!r}" in said
