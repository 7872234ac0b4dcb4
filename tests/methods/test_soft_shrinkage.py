"""Soft shrinkage: the worked steps, what escapes, and the hard prune at the end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import loss, tiny_params

W = {"w": jnp.array([0.5, -0.1, 0.3, -0.02, 0.2, 0.05, -0.4, 0.08])}
ZERO = jax.tree.map(jnp.zeros_like, W)


def everything(params):
    return params


def shrinking(sparsity=0.5, **options):
    return jp.dynamic.soft_shrinkage(sparsity, prunable=everything, **options)


def stepped(tx, grads, params=W, state=None):
    """The params after one step, and the state."""
    updates, state = tx.update(grads, state or tx.init(params), params)
    return optax.apply_updates(params, updates), state


def test_the_worked_step():
    new, _ = stepped(optax.chain(optax.sgd(0.1), shrinking()), ZERO)
    wanted = [0.5, -0.095, 0.3, -0.019, 0.2, 0.0475, -0.4, 0.076]
    np.testing.assert_allclose(new["w"], wanted, rtol=1e-6)


def test_what_shrinks_is_chosen_after_the_step_of_the_optimizer():
    pull = {"w": jnp.zeros(8).at[5].set(-3.0)}
    new, _ = stepped(optax.chain(optax.sgd(0.1), shrinking()), pull)
    wanted = [0.5, -0.095, 0.3, -0.019, 0.19, 0.35, -0.4, 0.076]
    np.testing.assert_allclose(new["w"], wanted, rtol=1e-6)


@pytest.mark.parametrize(("steps", "left"), [(10, 0.5987), (45, 0.0994), (90, 0.0099)])
def test_a_percentage_a_step(steps, left):
    tx = shrinking()

    def step(carry, _):
        return stepped(tx, ZERO, *carry), None

    (new, state), _ = jax.lax.scan(step, (W, tx.init(W)), length=steps)
    assert float(new["w"][1] / W["w"][1]) == pytest.approx(left, abs=5e-5)
    assert int(state.step) == steps and float(new["w"][0]) == 0.5


def test_factor_zero_is_hard_thresholding():
    new, _ = stepped(shrinking(factor=0), ZERO)
    np.testing.assert_array_equal(new["w"], jnp.where(jnp.abs(W["w"]) > 0.1, W["w"], 0.0))


def test_the_sparsity_may_rise():
    rising = lambda step: jnp.where(step == 0, 0.25, 0.75)
    tx = shrinking(rising, factor=0.5)
    first, state = stepped(tx, ZERO)
    second, _ = stepped(tx, ZERO, first, state)
    assert np.flatnonzero(first["w"] != W["w"]).tolist() == [3, 5]
    assert np.flatnonzero(second["w"] != first["w"]).tolist() == [1, 2, 3, 4, 5, 7]


def test_a_hard_prune_ends_it_and_nothing_but_zeros_shrinks_then():
    params = tiny_params()
    cut = jp.every(1, jp.prune(jp.magnitude, jp.uniform, 0.75), start=3, stop=3)
    tx = jp.sparsify(optax.chain(optax.sgd(0.02), jp.dynamic.soft_shrinkage(0.75)), cut)
    plain = jp.sparsify(optax.sgd(0.02), cut)

    @jax.jit
    def run(params, state):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            alone, _ = plain.update(grads, plain.init(params)._replace(step=state.step), params)
            kept = jp.get_masks(state)["Dense_0"]["kernel"]
            differ = (updates["Dense_0"]["kernel"] != alone["Dense_0"]["kernel"]) & kept
            return (optax.apply_updates(params, updates), state), (kept.mean(), differ.sum())

        return jax.lax.scan(step, (params, state), length=6)

    (params, state), (kept, differ) = run(params, tx.init(params))
    np.testing.assert_array_equal(kept, [1, 1, 1, 0.25, 0.25, 0.25])
    assert (differ[:3] > 0).all() and not differ[3:].any()
    assert float(jp.sparsity(jp.get_masks(state))) == 0.75
    assert params["Dense_0"]["bias"].all()


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [-0.1, 1.5, float("nan")])
def test_a_factor_out_of_range(factor):
    with pytest.raises(ValueError, match=r"left of a weight after one step, in \[0, 1\]; got"):
        jp.dynamic.soft_shrinkage(0.5, factor)


def test_other_bad_input():
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        shrinking(1.0)
    with pytest.raises(ValueError, match="soft_shrinkage shrinks weights, and needs them"):
        shrinking().update(ZERO, shrinking().init(W))
    with pytest.raises(ValueError, match="prunable"):
        jp.dynamic.soft_shrinkage(0.5).init({"bias": jnp.ones(3)})
