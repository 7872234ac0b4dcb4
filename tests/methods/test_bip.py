"""BiP: the worked hyper-gradients, the worked step, and masks that come back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.dynamic import hyper_gradient

W, G = jnp.array([0.5, -0.2, 0.3, 0.4]), jnp.array([0.1, 0.3, -0.2, 0.05])
C = jnp.array([[1, 0.5, -0.3, 0.2], [0, 1, 0.4, -0.6], [0.3, -0.2, 1, 0.1]])
B = jnp.array([1, -0.5, 0.8])


def everything(params):
    return params


def test_the_worked_hyper_gradient_and_step():
    m = jnp.array([1, 1, 0, 0.5])
    slopes = hyper_gradient(W, m, G)
    np.testing.assert_allclose(slopes, [0.04, -0.15, -0.06, 0.01875], rtol=1e-5)
    stepped = m - 0.1 * slopes
    np.testing.assert_allclose(stepped, [0.996, 1.015, 0.006, 0.498125], rtol=1e-5)
    kept = jp.select({"w": stepped}, jp.uniform, 0.5)["w"]
    np.testing.assert_array_equal(kept, np.array([1, 1, 0, 0], bool))


def test_a_mask_is_a_number_that_is_zero_or_one():
    kept = jnp.array([True, True, False, False])
    np.testing.assert_array_equal(hyper_gradient(W, kept, G), hyper_gradient(W, kept * 1.0, G))


def test_the_worked_quadratic():
    """The weights solve the lower level; the hyper-gradient has the signs of the true one."""
    m = jnp.array([1, 0.6, 0.8, 0.3])
    loss = lambda z: 0.5 * jnp.sum((C @ z - B) ** 2)
    weights = lambda m: jnp.linalg.solve(
        m[:, None] * (C.T @ C) * m[None] + jnp.eye(4), m * (C.T @ B)
    )
    w = weights(m)
    g = jax.grad(loss)(m * w)
    np.testing.assert_allclose(w, [0.6109, -0.1704, 0.1388, 0.1182], atol=5e-5)
    np.testing.assert_allclose(w + m * g, jnp.zeros(4), atol=1e-6)
    np.testing.assert_allclose(g, [-0.6109, 0.2840, -0.1734, -0.3940], atol=5e-5)
    slopes = hyper_gradient(w, m, g)
    np.testing.assert_allclose(slopes, [-0.7465, -0.0968, -0.0481, -0.0931], atol=1e-4)
    np.testing.assert_allclose(slopes, 2 * w * g, rtol=1e-5)
    true = jax.grad(lambda m: loss(m * weights(m)))(m)
    np.testing.assert_allclose(true, [-0.3799, -0.0957, -0.0283, -0.0645], atol=5e-5)
    assert (jnp.sign(true) == jnp.sign(slopes)).all()


def test_one_shot_by_magnitude_at_first_then_the_scores_learn():
    rule = jp.bip(0.5, optax.sgd(1.0), prunable=everything)
    state = rule.init({"w": W})
    assert state.masks["w"].all()
    first = rule.update(state, {"w": W}, grads={"w": G})
    np.testing.assert_array_equal(first.masks["w"], np.array([1, 0, 0, 1], bool))
    np.testing.assert_allclose(first.scores["w"], jnp.abs(W))
    pull = {"w": jnp.array([0.0, 2.0, 0.0, 0.0])}  # the loss falls with a larger negative weight
    second = rule.update(first, {"w": W}, grads=pull)
    np.testing.assert_allclose(second.scores["w"], [0.5, 0.6, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(second.masks["w"], np.array([1, 1, 0, 0], bool))


def test_the_masks_of_a_network_move_and_a_mask_comes_back():
    """A quadratic whose best two weights are not the largest at first."""
    target = jnp.array([0.1, -2.0, 1.5, 0.0])
    loss = lambda p: jnp.sum((p["w"] - target) ** 2)
    rule = jp.bip(0.5, optax.sgd(0.1), prunable=everything)
    tx = jp.train_only(optax.sgd(0.02), rule)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(loss)(jp.apply_masks(params, jp.get_masks(state)))
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), jp.get_masks(state)["w"]

        return jax.lax.scan(step, (params, tx.init(params)), length=100)

    (params, _), masks = run({"w": W})
    np.testing.assert_array_equal(masks[0], np.array([1, 0, 0, 1], bool))
    assert (masks.sum(1) == 2).all()
    np.testing.assert_array_equal(masks[-1], np.array([0, 1, 1, 0], bool))
    np.testing.assert_allclose(params["w"][1:3], target[1:3], rtol=0.05)


# --- bad input -----------------------------------------------------------------------------------


def test_bad_input():
    for gamma in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="gamma is the strength of a penalty"):
            jp.bip(0.5, optax.sgd(0.1), gamma)
        with pytest.raises(ValueError, match="gamma is the strength of a penalty"):
            hyper_gradient(W, W > 0, G, gamma)
    with pytest.raises(TypeError, match=r"such as optax\.sgd\(1\.0, 0\.9\); got float"):
        jp.bip(0.5, 0.1)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        jp.bip(1.0, optax.sgd(0.1))
