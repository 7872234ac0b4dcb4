"""RigL: the worked step, cadence and cosine, and what comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

# ten weights, six kept; half of them are dropped
W = jnp.array([0.9, -0.05, 0.0, 0.4, 0.0, -0.6, 0.02, 0.0, 0.1, 0.0])
MASK = jnp.array([1, 1, 0, 1, 0, 1, 1, 0, 1, 0], bool)
G = jnp.array([0.1, -0.9, 0.3, 0.05, -0.7, 0.2, 0.01, 0.6, -0.02, -0.15])


def everything(params):
    return params


def rigl(fraction=0.5):
    return jp.rigl(jax.random.key(0), 0.4, fraction, jp.uniform, everything)


def state_with(tx, params, masks):
    """The initial state, with these masks in the place of the random ones."""
    state = tx.init(params)
    return state._replace(mask_state=jp.MaskState(masks))


@pytest.mark.full
def test_the_worked_step():
    # drops 1, 6 and 8; grows 1, 4 and 7: 1 returns, and keeps its value
    tx = jp.sparsify(optax.sgd(0.0), rigl())
    state = state_with(tx, {"w": W}, {"w": MASK})
    updates, state = tx.update({"w": G}, state, {"w": W})
    np.testing.assert_array_equal(np.flatnonzero(jp.get_masks(state)["w"]), [0, 1, 3, 4, 5, 7])
    new = optax.apply_updates({"w": W}, updates)["w"]
    np.testing.assert_array_equal(new, jnp.array([0.9, -0.05, 0, 0.4, 0, -0.6, 0, 0, 0, 0]))


def test_moments_of_the_worked_step_are_zeroed_only_where_weights_are_new_or_gone():
    tx = jp.sparsify(optax.trace(0.5), jp.every(1, rigl()), update_replaces_step=True)
    momentum = jnp.arange(1.0, 11) * MASK
    state = state_with(tx, {"w": W}, {"w": MASK})
    state = state._replace(inner_state=optax.TraceState({"w": momentum}))
    _, state = tx.update({"w": G}, state, {"w": W})
    expected = jnp.array([1, 2, 0, 4, 0, 6, 0, 0, 0, 0], float)  # new at 4 and 7, back at 1
    np.testing.assert_array_equal(state.inner_state.trace["w"], expected)


def test_the_cosine_of_the_paper():
    fraction = optax.cosine_decay_schedule(0.3, 25_000)
    found = [float(fraction(step)) for step in (0, 6_250, 12_500, 18_750, 24_900)]
    assert found == pytest.approx([0.3, 0.2561, 0.15, 0.0439, 0.0], abs=5e-5)


def test_gradients_are_those_of_the_masked_weights_dense():
    """Growth reads gradients where weights are zero: sparsify hands them on unmasked."""
    params = {"kernel": jnp.arange(1.0, 13).reshape(3, 4)}
    tx = jp.sparsify(optax.sgd(0.1), jp.rigl(jax.random.key(1), 0.5, 1.0, jp.uniform))
    state = tx.init(params)
    masks = jp.get_masks(state)
    slopes = {"kernel": jnp.where(masks["kernel"], 0.0, 1.0)}
    _, new = tx.update(slopes, state, jp.apply_masks(params, masks))
    np.testing.assert_array_equal(jp.get_masks(new)["kernel"], ~masks["kernel"])


def test_low_precision_params_and_a_stacked_leaf():
    params = {"w": W.astype(jnp.bfloat16), "m": MASK}
    rule = rigl()
    state = jax.jit(rule.update)(
        jp.MaskState({"w": MASK}), {"w": params["w"]}, grads={"w": G.astype(jnp.bfloat16)}, step=0
    )
    np.testing.assert_array_equal(np.flatnonzero(state.masks["w"]), [0, 1, 3, 4, 5, 7])
