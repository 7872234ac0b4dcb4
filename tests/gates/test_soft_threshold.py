"""Soft thresholds: the formula, its gradients, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

W = {"kernel": jnp.array([[2.0, -0.25], [-1.0, 0.5]]), "bias": jnp.ones(2)}


def test_what_is_below_its_threshold_is_zero_and_the_rest_shrinks():
    logits = jp.gates.logits(jp.kernels(W), axes=())  # sigmoid(0) = 1/2
    used = jp.gates.soft_threshold(W, logits)
    np.testing.assert_allclose(used["kernel"], [[1.5, 0], [-0.5, 0]])
    np.testing.assert_array_equal(used["bias"], W["bias"])


def test_a_low_logit_changes_nothing():
    used = jp.gates.soft_threshold(W, jp.gates.logits(jp.kernels(W), axes=(), logit=-3200.0))
    np.testing.assert_array_equal(used["kernel"], W["kernel"])


def test_gradients_flow_to_what_is_kept_only():
    def total(params, logits):
        used = jp.gates.soft_threshold(params, logits)["kernel"]
        return jnp.sum(used * jnp.array([[1.0, 2.0], [3.0, 4.0]]))

    logits = {"kernel": jnp.zeros((1, 1)), "bias": None}
    slopes, slope = jax.grad(total, argnums=(0, 1))(W, logits)
    np.testing.assert_allclose(slopes["kernel"], [[1, 0], [3, 0]])
    # dL/ds = -sigmoid'(0) * sum over the kept of dL/dw sign(w) = -(1 - 3) / 4
    np.testing.assert_allclose(slope["kernel"], [[0.5]])


def test_the_dtype_stays():
    params = {"kernel": W["kernel"].astype(jnp.bfloat16)}
    used = jp.gates.soft_threshold(params, {"kernel": jnp.zeros((1, 1))}, threshold=jnp.exp)
    assert used["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(used["kernel"], [[1, 0], [0, 0]])


def test_what_does_not_fit():
    with pytest.raises(
        ValueError, match=r"'kernel' has shape \(3, 1\), wanted one that broadcasts to \(2, 2\)"
    ):
        jp.gates.soft_threshold(W, {"kernel": jnp.zeros((3, 1)), "bias": None})
    with pytest.raises(
        ValueError, match="the gates must be like the params: not in the params: 'head'"
    ):
        jp.gates.soft_threshold(W, {"head": jnp.zeros((1, 1))})
