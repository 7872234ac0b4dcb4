"""Soft thresholds: the formula, its gradients, and decay that raises thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp

W = {"kernel": jnp.array([[2.0, -0.25], [-1.0, 0.5]]), "bias": jnp.ones(2)}
HALF = jp.reparam.soft_threshold(logit=0.0)  # sigmoid(0) = 1/2


def test_what_is_below_its_threshold_is_zero_and_the_rest_shrinks():
    learned = HALF.init(W)
    assert learned.logits["kernel"].shape == (1, 1) and learned.logits["bias"] is None
    used = HALF.apply(learned)
    np.testing.assert_allclose(used["kernel"], [[1.5, 0], [-0.5, 0]])
    np.testing.assert_array_equal(used["bias"], W["bias"])


def test_a_low_logit_changes_nothing():
    low = jp.reparam.soft_threshold()
    np.testing.assert_array_equal(low.apply(low.init(W))["kernel"], W["kernel"])


def test_gradients_flow_to_what_is_kept_only():
    factors = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    slopes = jax.grad(lambda learned: jnp.sum(HALF.apply(learned)["kernel"] * factors))(
        HALF.init(W)
    )
    np.testing.assert_allclose(slopes.weights["kernel"], [[1, 0], [3, 0]])
    # dL/ds = -sigmoid'(0) * sum over the kept of dL/dw sign(w) = -(1 - 3) / 4
    np.testing.assert_allclose(slopes.logits["kernel"], [[0.5]])


def test_other_thresholds_in_half_precision():
    params = {"kernel": W["kernel"].astype(jnp.bfloat16)}
    method = jp.reparam.soft_threshold(0.0, threshold=jnp.exp)
    used = method.apply(method.init(params))["kernel"]
    assert used.dtype == jnp.bfloat16
    np.testing.assert_allclose(used, [[1, 0], [0, 0]])


def test_decay_raises_the_thresholds():
    method, tx = jp.reparam.soft_threshold(-4.0), optax.add_decayed_weights(0.5)
    learned = method.init(W)
    kept = []
    for _ in range(8):
        kept.append(int((method.apply(learned)["kernel"] != 0).sum()))
        decay, _ = tx.update(jax.tree.map(jnp.zeros_like, learned), tx.init(learned), learned)
        learned = learned._replace(logits=jax.tree.map(jnp.subtract, learned.logits, decay.logits))
    assert kept[0] == 4 and kept[-1] == 3 and sorted(kept, reverse=True) == kept
