"""DPF: the worked step, schedules, and weights that come back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

W = {"w": jnp.array([0.5, 0.1, -0.3, 0.05])}


def everything(params):
    return params


def test_the_worked_step():
    tx = jp.keep_dense(optax.sgd(0.1), jp.dpf(0.5, prunable=everything))
    grads, state = {"w": jnp.array([0.2, -3.0, 0.1, 0.0])}, tx.init(W)
    np.testing.assert_array_equal(jp.get_masks(state)["w"], jnp.array([1, 0, 1, 0], bool))
    updates, state = tx.update(grads, state, W)
    new = optax.apply_updates(W, updates)
    np.testing.assert_allclose(new["w"], jnp.array([0.48, 0.4, -0.31, 0.05]), rtol=1e-6)
    np.testing.assert_array_equal(jp.get_masks(state)["w"], jnp.array([1, 1, 0, 0], bool))


def test_sparsity_follows_the_schedule_and_falls_with_it():
    schedule = lambda step: jnp.where(step < 3, 0.75, 0.25)
    rule = jp.dpf(schedule, jp.uniform, prunable=everything)
    state = rule.init(W)
    found = [float(jp.sparsity(state.masks))]
    for step in range(1, 6):
        state = rule.update(state, W, step=jnp.int32(step))
        found.append(float(jp.sparsity(state.masks)))
    assert found == [0.75] * 3 + [0.25] * 3


def test_the_network_learns_with_a_straight_through_gradient():
    """A weight whose mask is False still learns, until it is one of the largest."""
    target = jnp.array([1.0, -1.0, 0.0, 0.0])
    loss = lambda params: jnp.sum((params["w"] - target) ** 2)
    params = {"w": jnp.array([0.1, -0.01, 0.3, 0.2])}  # the wrong two are the largest
    tx = jp.keep_dense(optax.sgd(0.1), jp.dpf(0.5, prunable=everything))
    state = tx.init(params)
    for _ in range(60):
        grads = jax.grad(loss)(jp.apply_masks(params, jp.get_masks(state)))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert loss(jp.apply_masks(params, jp.get_masks(state))) < 1e-2


def test_patterns():
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 6))}
    state = jp.dpf(0.5, jp.uniform, jp.nm(2, 4)).update(
        jp.dpf(0.5, jp.uniform, jp.nm(2, 4)).init(params), params, step=0
    )
    np.testing.assert_array_equal(state.masks["kernel"].reshape(2, 4, 6).sum(1), 2)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [
        jp.dpf(0.5),
        jp.every(16, jp.dpf(0.5)),
        jp.once(jp.dpf(0.5)),
        jp.chain(jp.itop(jp.dpf(0.5))),
        jp.top_kast(0.9, 0.8),
        jp.bip(0.5, optax.sgd(0.1)),
    ],
    ids=["dpf", "every", "once", "chain", "top_kast", "bip"],
)
def test_sparsify_refuses_what_ranks_dense_weights(transform):
    params = {"kernel": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="compares weights that stay dense") as error:
        jp.sparsify(optax.sgd(0.1), transform).init(params)
    assert "dpf to keep_dense, and top_kast or bip to train_only" in str(error.value)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, optax.constant_schedule(1.0)])
def test_a_sparsity_out_of_range(sparsity):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        jp.dpf(sparsity)
