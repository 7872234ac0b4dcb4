"""Hard concrete gates: exact zeros with a gradient, and an expected L0 norm in closed form."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.gates.gate import Gate, Gates, Logits, check_positive, check_sample_key, drawn, noise
from jaxprune.trees import map_scored


def hard_concrete(temperature: Any = 2 / 3, low: float = -0.1, high: float = 1.1) -> Gate:
    """A sigmoid with logistic noise, stretched to [low, high] and clipped to [0, 1].

        v = sigmoid((log u - log(1 - u) + s) / temperature),  u uniform
        gate = clip(v (high - low) + low, 0, 1)
        P(gate > 0) = sigmoid(s - temperature log(-low / high))

    The logits s are the paper's log alpha. For testing it is clip(sigmoid(s) (high - low) + low,
    0, 1). Its authors start with most gates open, at s = log((1 - p) / p) with p the fraction
    dropped, 0.2 or 0.5; they keep s in a box, and test with averages of the params:

        logits = logits(kernels(params), logit=math.log(0.8 / 0.2))   # P(gate > 0) = 0.95
        gates_tx = optax.chain(optax.adam(1e-3), box(math.log(0.01), math.log(100)))
        average = optax.incremental_update(learned, average, 1 - 0.999)    # after each step

    where `learned` is all that is trained, logits too, and `average` starts as it.

    Args:
      temperature: above 0; may be traced, as of a schedule.
      low, high: low < 0 and high > 1.

    Raises:
      ValueError: if these do not hold.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.gates.hard_concrete().deterministic({'kernel': jnp.array([4., 0., -4.])})['kernel']
    Array([1. , 0.5, 0. ], dtype=float32)

    Reference: Louizos, Welling and Kingma, 2018, Learning Sparse Neural Networks through L0
    Regularization.
    """
    check_positive("hard_concrete", "temperature", temperature)
    if not (low < 0 and high > 1):
        raise ValueError(
            f"hard_concrete needs low < 0 and high > 1; got low={low}, high={high}: gates would "
            "never be exactly 0 or 1."
        )

    def clipped(v: jax.Array) -> jax.Array:
        return jnp.clip(v * (high - low) + low, 0.0, 1.0)

    def sample(key: jax.Array, logits: Logits) -> Gates:
        check_sample_key("hard_concrete", key)
        one = lambda k, s: clipped(jax.nn.sigmoid((noise(k, s) + s) / temperature))
        return drawn(one, key, logits)

    return Gate(
        sample,
        deterministic=lambda logits: map_scored(lambda s: clipped(jax.nn.sigmoid(s)), logits),
        p_open=lambda logits: map_scored(
            lambda s: jax.nn.sigmoid(s - temperature * math.log(-low / high)), logits
        ),
    )
