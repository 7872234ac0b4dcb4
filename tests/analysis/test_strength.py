"""The strength of inputs: worked by hand, and of stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.analysis import input_strength

W = jnp.array([[0.5, 0, -0.2], [0, 0, 0.1], [0.3, -0.4, 0], [0, 0.05, 0]])


def test_worked_by_hand():
    strength = input_strength(W)
    np.testing.assert_allclose(strength, [0.7, 0.1, 0.7, 0.05], rtol=1e-6)
    _, chosen = jax.lax.top_k(strength, 2)
    assert sorted(chosen.tolist()) == [0, 2]
    half = input_strength(W.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32


def test_of_a_stack():
    stack = jnp.stack([W, 2 * W])
    np.testing.assert_allclose(jax.vmap(input_strength)(stack)[1], 2 * input_strength(W))
    with pytest.raises(ValueError, match=r"got shape \(2, 4, 3\)\. For a stack of seeds"):
        input_strength(stack)
