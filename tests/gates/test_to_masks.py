"""From gates to masks: thresholds, numbers, budgets; collapse is seen."""

import warnings
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.selection.largest import largest
from tests.quick import quick

KERNEL = {"kernel": jnp.ones((4, 3)), "bias": None}
LOGITS = {"kernel": jnp.array([[0.1], [0.4], [-0.2], [0.3]]), "bias": None}


def mlp(key, sizes=(6, 10, 8, 3)):
    keys = jax.random.split(key, len(sizes))
    return {
        f"Dense_{i}": {
            "kernel": jax.random.normal(keys[i], (n, m)) / n**0.5,
            "bias": 0.1 * jax.random.normal(jax.random.fold_in(keys[i], 1), (m,)),
        }
        for i, (n, m) in enumerate(pairwise(sizes))
    }


def apply(params, x):
    for i in range(3):
        x = x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"][None]
        x = jnp.tanh(x) if i < 2 else x
    return x


PARAMS = mlp(jax.random.key(0))
X = jax.random.normal(jax.random.key(9), (5, 6))
STRUCTURE = jp.analyze(apply, PARAMS, X, sliceable_inputs=[("0", 1)])


def cost_of(structure):
    """The fraction of the FLOPs that gates of neurons keep."""
    dense = jp.structured.cost(structure).flops
    return lambda gates: jp.structured.relaxed_cost(structure, gates).flops / dense


# --- thresholds and numbers ----------------------------------------------------------------------


def test_open_gates_are_above_the_threshold():
    gates = jp.gates.hard_concrete().deterministic(
        {"kernel": jnp.array([4.0, 0.0, -4.0]), "bias": None}
    )
    assert jp.gates.threshold(gates)["kernel"].tolist() == [True, True, False]
    assert jp.gates.threshold(gates, above=0.5)["kernel"].tolist() == [True, False, False]
    assert jp.gates.threshold(gates)["bias"] is None


def test_an_exact_number_of_gates_is_a_selection_by_logits():
    open_ = jp.select(LOGITS, jp.global_threshold, 0.5)
    masks = jp.gates.masks(open_, KERNEL)
    assert masks["kernel"].shape == (4, 3) and masks["bias"] is None
    assert masks["kernel"].all(1).tolist() == [False, True, False, True]
    jp.fixed(masks).init(KERNEL)


def test_keep_at_least_guards_every_leaf():
    logits = {"a": jnp.array([5.0, 4.0, 3.0]), "b": jnp.array([-5.0, -4.0]), "c": None}
    open_ = jp.select(jp.gates.keep_at_least(logits, 1), jp.global_threshold, 0.6)
    assert open_["a"].tolist() == [True, False, False] and open_["b"].tolist() == [False, True]
    both = jp.gates.keep_at_least(logits, 5)
    assert jnp.isinf(both["a"]).all() and jnp.isinf(both["b"]).all() and both["c"] is None


# --- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", quick([0.2, 0.5, 0.76, 0.99]))
def test_within_budget_is_the_largest_selection_that_fits(target):
    logits = jax.tree.map(
        lambda s: jax.random.normal(jax.random.key(s.size), s.shape),
        jp.structured.gate_logits(STRUCTURE),
    )
    kept = cost_of(STRUCTURE)
    open_ = jax.jit(lambda s: jp.gates.within_budget(s, kept, target))(logits)
    assert kept(open_) <= target + 1e-6
    number = int(sum(m.sum() for m in jax.tree.leaves(open_)))
    leaves, treedef = jax.tree.flatten(logits)
    exact, one_more = (
        jax.tree.unflatten(treedef, largest(leaves, n, together=True)) for n in (number, number + 1)
    )
    assert kept(one_more) > target
    jax.tree.map(np.testing.assert_array_equal, open_, exact)


def test_within_budget_keeps_what_must_stay():
    kept = lambda open_: jp.gates.kept_weights(open_, KERNEL)
    guarded = jp.gates.keep_at_least(LOGITS, 2)
    open_ = jp.gates.within_budget(guarded, kept, 0.5)
    assert open_["kernel"][:, 0].tolist() == [False, True, False, True]
    with pytest.raises(
        ValueError, match=r"no selection keeps 0.25 or less; with the 2 gates .* 0.5"
    ):
        jp.gates.within_budget(guarded, kept, 0.25)


@pytest.mark.full
def test_within_budget_over_seeds():
    seeds = jax.random.normal(jax.random.key(0), (3, 4, 1))
    within = lambda s: jp.gates.within_budget(
        {"kernel": s, "bias": None}, lambda open_: jp.gates.kept_weights(open_, KERNEL), 0.5
    )["kernel"]
    together = jax.vmap(within)(seeds)
    for i in range(3):
        np.testing.assert_array_equal(together[i], within(seeds[i]))
        assert together[i].sum() == 2


# --- collapse ------------------------------------------------------------------------------------


def test_a_layer_whose_gates_all_close_is_named():
    gates = {
        "a": {"kernel": jnp.array([0.0, 0.0])},
        "b": {"kernel": jnp.array([0.0, 0.1])},
        "c": None,
    }
    wanted = {"a/kernel": True, "b/kernel": False}
    assert jp.at_init.empty_layers(gates) == wanted
    with pytest.warns(UserWarning, match=r"all gates of 'a/kernel' are closed.*keep_at_least"):
        open_ = jp.gates.threshold(gates)
    assert jp.at_init.empty_layers(open_) == wanted
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(jp.gates.threshold)(gates)  # values are not known


# --- the whole of it: learn which neurons I need, land on 20 % of the FLOPs ----------------------


@pytest.mark.full
def test_learn_which_neurons_i_need_and_land_on_a_fifth_of_the_flops():
    params, x = (
        mlp(jax.random.key(1), (6, 40, 40, 3)),
        jax.random.normal(jax.random.key(2), (64, 6)),
    )
    y = jnp.sin(x[:, :3])
    cost = lambda params: jnp.mean((apply(params, x) - y) ** 2)
    # the program of the pages, from here
    structure = jp.analyze(apply, params, x)
    gate, kept = jp.gates.hard_concrete(), cost_of(structure)

    def loss(learned, key, target):
        weights, logits, multipliers = learned
        gates = gate.sample(key, logits)
        gated = jp.structured.apply_gates(structure, weights, gates, at_readers=True)
        return cost(gated) + jp.gates.lagrangian(multipliers, kept(gate.p_open(logits)), target)

    learned = params, jp.structured.gate_logits(structure, 2.0), jp.gates.multipliers()
    learned = train(loss, learned, optax.polynomial_schedule(1.0, 0.2, 3, 300))
    neurons = jp.gates.within_budget(jp.gates.keep_at_least(learned[1]), kept, 0.2)
    masks = jp.structured.masks(structure, neurons)
    tx = jp.sparsify(optax.adam(1e-2), jp.fixed(masks))  # and train on
    # to here
    weights, logits, _ = learned
    assert float(kept(gate.p_open(logits))) == pytest.approx(0.2, abs=0.01)
    assert 0.18 < float(kept(neurons)) <= 0.2 + 1e-6
    smaller = jp.structured.cost(structure, neurons).flops / jp.structured.cost(structure).flops
    assert float(kept(neurons)) == pytest.approx(smaller)
    assert not any(jp.at_init.empty_layers(neurons).values())
    weights = jp.apply_masks(weights, masks)
    updates, _ = tx.update(jax.grad(cost)(weights), tx.init(weights), weights)
    assert cost(optax.apply_updates(weights, updates)) < 0.5 * cost(params)


def train(loss, learned, target, steps=600):
    """Plain optax, with a faster rate for all that is no weight."""
    fast = optax.adam(5e-2, b2=0.9)
    tx = optax.partition({"weights": optax.adam(1e-2), "fast": fast}, ("weights", "fast", "fast"))

    def step(carry, now):
        learned, state = carry
        key = jax.random.fold_in(jax.random.key(3), now)
        updates, state = tx.update(jax.grad(loss)(learned, key, target(now)), state, learned)
        return (optax.apply_updates(learned, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[0])
    return run((learned, tx.init(learned)))[0]


def test_keep_at_least_keeps_in_a_dtype_without_infinity():
    scores = {"a": jnp.array([1.0, -3.0], jnp.float8_e4m3fn)}
    np.testing.assert_array_equal(jp.gates.keep_at_least(scores)["a"], [jnp.inf, -3.0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float8_e4m3fn])
def test_keep_at_least_is_the_same_under_jit(dtype):
    """Whether a dtype has an infinity is read off the dtype: no traced number is asked."""
    scores = {"a": jnp.array([1.0, -3.0, 2.0], dtype)}
    np.testing.assert_array_equal(
        jax.jit(jp.gates.keep_at_least)(scores)["a"], jp.gates.keep_at_least(scores)["a"]
    )
