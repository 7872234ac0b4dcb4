"""Gates of weights: what training and testing use, and what is no family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

W = {"kernel": jnp.array([[2.0, -1.0, 4.0]]), "bias": jnp.ones(3)}
LOGITS = {"kernel": jnp.array([[4.0, 0.0, -4.0]]), "bias": None}
LEARNED = jp.reparam.WeightGates(W, LOGITS)


def test_training_draws_the_gates_of_the_family():
    gate, key = jp.gates.hard_concrete(), jax.random.key(3)
    used = jp.reparam.weight_gates(gate).apply(LEARNED, key=key)["kernel"]
    np.testing.assert_allclose(used, W["kernel"] * gate.sample(key, LOGITS)["kernel"])


def test_testing_needs_no_key():
    method = jp.reparam.weight_gates(jp.gates.hard_concrete(), deterministic=True)
    used = method.apply(LEARNED)
    np.testing.assert_allclose(used["kernel"], [[2, -0.5, 0]], atol=1e-6)
    np.testing.assert_array_equal(used["bias"], W["bias"])


def test_a_schedule_reads_the_step():
    family = lambda step: jp.gates.continuous_sparsification(1.0 + 100 * step, 0.0)
    method = jp.reparam.weight_gates(family, logit=0.1)
    learned = method.init(W)
    first, last = (method.apply(learned, step=step)["kernel"] for step in (0, 1))
    np.testing.assert_allclose(first, 2 * jax.nn.sigmoid(0.1) * W["kernel"], rtol=1e-6)
    np.testing.assert_allclose(last, 2 * W["kernel"], rtol=1e-4)


def test_axes_say_which_weights_share_a_gate():
    method = jp.reparam.weight_gates(jp.gates.straight_through(), 1.5, axes=-1)
    logits = method.init({"kernel": jnp.ones((4, 3))}).logits["kernel"]
    assert logits.shape == (1, 3) and (logits == 1.5).all()


def test_what_is_no_family():
    with pytest.raises(TypeError, match=r"weight_gates needs a family of gates.*got str"):
        jp.reparam.weight_gates("hard_concrete")
    method = jp.reparam.weight_gates(lambda step: 1.0)
    with pytest.raises(TypeError, match=r"returns a family of gates; it returned float"):
        method.apply(LEARNED, step=0)
