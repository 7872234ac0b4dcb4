"""Relaxed choices: of open or closed (binary concrete), and of one among several (Gumbel)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.gates.gate import Gate, Gates, Logits, check_positive, check_sample_key, drawn, noise
from jaxprune.trees import map_scored


def binary_concrete(temperature: Any, hard: bool = False) -> Gate:
    """A sigmoid with logistic noise: gate = sigmoid((s + log u - log(1 - u)) / temperature).

    For testing it is sigmoid(s), which is also P(gate > 1/2) at any temperature. `p_open` gives
    this, because a relaxed gate is never exactly 0.

    Args:
      temperature: above 0; may be traced, as of a schedule.
      hard: whether samples are rounded to 0 or 1, with the gradient of the sample before it.

    Raises:
      ValueError: if the temperature is not above 0.

    Reference: Maddison, Mnih and Teh, 2017, The Concrete Distribution.
    """
    check_positive("binary_concrete", "temperature", temperature)

    def one(key: jax.Array, s: jax.Array) -> jax.Array:
        soft = jax.nn.sigmoid((s + noise(key, s)) / temperature)
        return through((soft > 0.5).astype(soft.dtype), soft) if hard else soft

    def sample(key: jax.Array, logits: Logits) -> Gates:
        check_sample_key("binary_concrete", key)
        return drawn(one, key, logits)

    p_open = lambda logits: map_scored(jax.nn.sigmoid, logits)
    return Gate(sample, deterministic=p_open, p_open=p_open)


def gumbel_softmax(temperature: Any, hard: bool = False) -> Gate:
    """One among several, along the last axis: softmax((a + g) / temperature), g Gumbel noise.

    The argmax of a sample is entry i with probability softmax(a)_i at any temperature: `p_open`
    gives this. For testing it is one-hot at the largest logit. Gates over sets of
    layers or over widths are the product of these with a matrix of options.

    Args:
      temperature: above 0; may be traced, as of a schedule.
      hard: whether samples are one-hot, with the gradient of the sample before it.

    Raises:
      ValueError: if the temperature is not above 0.

    Reference: Jang, Gu and Poole, 2017, Categorical Reparameterization with Gumbel-Softmax.
    """
    check_positive("gumbel_softmax", "temperature", temperature)

    def one_hot(a: jax.Array) -> jax.Array:
        return jax.nn.one_hot(jnp.argmax(a, -1), a.shape[-1], dtype=a.dtype)

    def one(key: jax.Array, a: jax.Array) -> jax.Array:
        soft = jax.nn.softmax((a + jax.random.gumbel(key, a.shape, jnp.float32)) / temperature)
        return through(one_hot(soft), soft) if hard else soft

    def sample(key: jax.Array, logits: Logits) -> Gates:
        check_sample_key("gumbel_softmax", key)
        return drawn(one, key, logits)

    return Gate(
        sample,
        deterministic=lambda logits: map_scored(one_hot, logits),
        p_open=lambda logits: map_scored(jax.nn.softmax, logits),
    )


def through(forward: jax.Array, backward: jax.Array) -> jax.Array:
    """The value of `forward`, exactly, with the gradient of `backward`: straight through."""
    # not backward + stop(forward - backward): 0.3 + (1 - 0.3) is not 1 in floats
    return jax.lax.stop_gradient(forward) + (backward - jax.lax.stop_gradient(backward))
