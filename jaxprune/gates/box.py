"""Params that stay in a box: clamped logits, scales of norms in [0, 1]."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Params


def box(low: float, high: float) -> optax.GradientTransformation:
    """Clips the updates so that params + updates lies in [low, high]; last in an `optax.chain`.

    The L0 code keeps logits in [log 0.01, log 100], that of polarization scales in [0, 1].

    Raises:
      ValueError: unless low < high; (in update) if `params` is missing.
    """
    if not low < high:
        raise ValueError(f"gates.box needs low < high; got {low} and {high}.")

    def update(updates: Any, state: Any, params: Params = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("gates.box needs the params: call update(grads, state, params).")
        boxed = lambda u, w: jnp.clip(w + u, low, high).astype(u.dtype) - w
        return jax.tree.map(boxed, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
