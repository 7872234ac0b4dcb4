"""What is claimed to stay zero does, and what optimizers are made of is recognised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.zero_flow import keeps_zeros

# name -> (f of a masked and of a free array, whether it is to be proven zero where the first is)
FUNCTIONS = {
    "moment": (lambda x, y: 0.9 * x + 0.1 * x**2, True),
    "adam": (lambda x, y: x / (jnp.sqrt(x * x) + 1e-8) * y, True),
    "sign": (lambda x, y: jnp.sign(0.9 * x - 0.1 * x), True),
    "times": (lambda x, y: x * y, True),
    "select": (lambda x, y: jnp.where(y > 0, x, 0.0), True),
    "clip": (lambda x, y: jnp.clip(x, -1, 1), False),  # it does, but is not recognised
    "cast": (lambda x, y: (-x).astype(jnp.bfloat16), True),
    "jit": (jax.jit(lambda x, y: jnp.abs(x) * y), True),
    "relu": (lambda x, y: jax.nn.relu(x), True),
    "cond": (lambda x, y: lax.cond(y.sum() > 0, lambda: x, lambda: 2 * x), True),
    "plus": (lambda x, y: x + y, False),
    "constant": (lambda x, y: x + 1e-30, False),  # adafactor
    "floor": (lambda x, y: jnp.maximum(x, 1e-30), False),
    "other": (lambda x, y: y, False),
    "cosine": (lambda x, y: jnp.cos(x), False),
    "one branch": (lambda x, y: lax.cond(y.sum() > 0, lambda: x, lambda: y), False),
    "where zero": (lambda x, y: jnp.where(x == 0, 1.0, x), False),
    "mirrored": (lambda x, y: x[::-1], False),  # zero, but elsewhere
    "summed": (lambda x, y: jnp.cumsum(x), False),
    "spread": (lambda x, y: jnp.broadcast_to(x[:1], x.shape), False),
    "constant one": (lambda x, y: x**0, False),
    "inverse": (lambda x, y: 1 / x, False),
    "inverse power": (lambda x, y: x**-2, False),
    "root": (lambda x, y: lax.rsqrt(x), False),
}
X, Y = np.array([0.0, 2.0, -3.0, 0.5], np.float32), np.array([4.0, -1.0, 2.0, 0.0], np.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_proven(name):
    f, expected = FUNCTIONS[name]
    assert keeps_zeros(f, [True, False], X, Y) == [expected]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_proven_is_true(name):
    f, _ = FUNCTIONS[name]
    if keeps_zeros(f, [True, False], X, Y) == [True]:
        for y in (Y, -Y):
            assert float(f(jnp.asarray(X), jnp.asarray(y))[0]) == 0


def test_each_result_by_itself():
    f = lambda state, g: {"mu": 0.9 * state["mu"] + g, "count": state["count"] + 1, "seen": g}
    state = {"count": jnp.int32(0), "mu": X}
    # leaves: count, mu, g; the results in the order of their names
    assert keeps_zeros(f, [False, True, True], state, X) == [False, True, True]
    assert keeps_zeros(f, [False, True, False], state, X) == [False, False, False]


def test_the_moments_of_adam_need_not_be_masked_again():
    params = {"kernel": X}
    tx = optax.adam(0.1)
    state = tx.init(params)
    zero = [True, *[leaf.shape == X.shape for leaf in jax.tree.leaves(state)], True]
    proven = keeps_zeros(lambda *args: tx.update(*args)[1], zero, params, state, params)
    assert proven == [False, True, True]  # count, mu, nu


@pytest.mark.xfail(
    strict=True, reason="no denominator is taken to be zero; the next step clears the moments again"
)
@pytest.mark.parametrize(
    "inner",
    [
        optax.rmsprop(0.1, eps=0.0, momentum=0.9),
        optax.chain(optax.scale_by_adam(eps=0.0), optax.trace(0.9)),
    ],
    ids=["rmsprop", "adam"],
)
def test_moments_are_zero_also_where_an_optimizer_divides_by_zero(inner):
    # without an eps, 0 / sqrt(0) or 0 * rsqrt(0) is nan where a weight is pruned
    params = {"kernel": jnp.array([[3.0, -1.0], [2.0, -4.0]])}
    mask = jnp.array([[True, False], [False, True]])
    tx = jp.sparsify(inner, jp.fixed({"kernel": mask}))
    _, state = tx.update(params, tx.init(params), params)
    for leaf in jax.tree.leaves(state.inner_state):
        if leaf.shape == mask.shape:
            np.testing.assert_array_equal(np.asarray(leaf)[~mask], [0.0, 0.0])


def test_an_optimizer_may_hold_an_array_inside_a_trace():
    tx = jp.sparsify(optax.sgd(jnp.float32(0.5), momentum=0.9), jp.fixed({"w": X != 0}))
    step = jax.jit(lambda params: tx.update(params, tx.init(params), params)[0])
    np.testing.assert_array_equal(step({"w": jnp.asarray(X)})["w"], -0.5 * X)
