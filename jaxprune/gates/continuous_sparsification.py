"""Sigmoid gates whose slope grows until they are steps: continuous sparsification."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import map_scored
from jaxprune.gates.gate import Gate, Logits, check_positive


def continuous_sparsification(slope: Any) -> Gate:
    """Gates that are sigmoid(slope s). Without chance: it takes any key.

    Raise the slope as training goes on, and the gates become the mask s > 0:

        slope = optax.exponential_decay(1.0, steps, 200.0)   # from 1 to 200
        gates = continuous_sparsification(slope(step)).sample(None, logits)

    Args:
      slope: one over the temperature; above 0; may be traced.

    Raises:
      ValueError: if the slope is not above 0.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> gate = jp.continuous_sparsification(200.0)
    >>> gate.deterministic({'kernel': jnp.array([.1, 0., -.1])})['kernel'].round(3)
    Array([1. , 0.5, 0. ], dtype=float32)

    Reference: Savarese, Silva and Maire, 2020, Winning the Lottery with Continuous Sparsification.
    """
    check_positive("continuous_sparsification", "slope", slope)
    gates = lambda logits: map_scored(lambda s: jax.nn.sigmoid(slope * s), logits)
    return Gate(lambda key, logits: gates(logits), gates, gates)


def rewound_logits(logits: Logits, slope: Any, first: Logits) -> Logits:
    """Logits for another round at slope 1: min(slope s, first s). Closed gates stay closed.

    Args:
      logits: at the end of a round.
      slope: that at the end of the round.
      first: the logits at its start.

    Reference: Savarese, Silva and Maire, 2020, Winning the Lottery with Continuous Sparsification.
    """
    check_positive("rewound_logits", "slope", slope)
    return map_scored(lambda s, s0: jnp.minimum(slope * s, s0), logits, first)
