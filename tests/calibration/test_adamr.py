"""AdamR: the worked step, where it is Adam, and that it keeps changes small."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

adamr = jp.calibration.adamr
START = {"w": jnp.array([0.9, -0.4]), "b": jnp.array([0.2])}
PARAMS = {"w": jnp.array([1.0, -0.5]), "b": jnp.array([0.2])}
GRADS = {"w": jnp.array([0.2, 0.1]), "b": jnp.array([-0.3])}  # squares .04, .01, .09


def stepped(tx, params=PARAMS, grads=GRADS):
    updates, state = tx.update(grads, tx.init(START), params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize(
    ("absolute", "wanted"), [(False, [0.9995, -0.4995]), (True, [0.9954, -0.4954])]
)
def test_the_worked_step(absolute, wanted):
    """The pull alone; the step of Adam is added to it, and the bias has not moved."""
    after, _ = stepped(adamr(0.01, 0.1, absolute))
    np.testing.assert_allclose(after["w"] + 0.01, wanted, atol=5e-5)
    np.testing.assert_allclose(after["b"] - 0.01, [0.2], atol=1e-6)


def test_without_a_pull_it_is_adam_and_rates_may_be_schedules():
    ours, theirs = (
        adamr(optax.linear_schedule(0.1, 0.0, 5), 0),
        optax.adam(optax.linear_schedule(0.1, 0.0, 5)),
    )
    a, b = (tx.init(PARAMS) for tx in (ours, theirs))
    for scale in (1.0, -2.0, 0.5):
        grads = jax.tree.map(lambda g, scale=scale: scale * g, GRADS)
        (one, a), (other, b) = ours.update(grads, a, PARAMS), theirs.update(grads, b, PARAMS)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, other)


def test_without_gradients_it_returns_and_nothing_is_nan():
    zeros = jax.tree.map(jnp.zeros_like, GRADS)
    after, _ = stepped(adamr(0.5, 1.0), grads=zeros)
    np.testing.assert_allclose(after["w"], [0.95, -0.45], atol=1e-6)


@pytest.mark.parametrize("absolute", [False, True])
def test_changes_stay_smaller_than_those_of_adam(absolute):
    """A loss far away, under jit; also inside sparsify, where pruned weights stay zero."""
    masks = {"w": jnp.array([True, False]), "b": None}
    tx = jp.sparsify(adamr(0.01, 2.0, absolute), jp.fixed(masks))
    plain = jp.sparsify(optax.adam(0.01), jp.fixed(masks))

    def moved(tx):
        start = jp.apply_masks(START, masks)
        step = lambda _, c: _step(tx, *c)
        end = jax.jit(lambda: jax.lax.fori_loop(0, 100, step, (start, tx.init(start))))()[0]
        assert end["w"][1] == 0
        return float(jnp.abs(end["w"][0] - start["w"][0]))

    assert 0 < moved(tx) < 0.8 * moved(plain)


def _step(tx, params, state):
    grads = jax.grad(lambda p: jnp.square(p["w"] - 3).sum())(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def test_clear_errors():
    with pytest.raises(ValueError, match="pull is a number, 0 or more; got -1"):
        adamr(0.1, -1)
    tx = adamr(0.1)
    with pytest.raises(ValueError, match=r"call update\(grads, state, params\)"):
        tx.update(GRADS, tx.init(START))
    with pytest.raises(ValueError, match="adamr: the params of init"):
        tx.update(GRADS, tx.init({"w": jnp.ones(3), "b": jnp.ones(1)}), PARAMS)
