"""Normalized feature distillation: no layer drowns another, nor the task."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import shown


def normalized(task: Any, terms: Any) -> jax.Array:
    """The loss of the task plus terms of features, each brought to the size of the task's loss.

        task + sum_i w_i term_i,   w_i = task / term_i, which gets no gradient

    The value is (1 + the number of terms) times the task's. The gradient of a term is as large as
    if its loss were the task's, whatever the size of the features of its layer. A term that is 0
    stays 0. LAPTOP-Diff scales terms so that none dominates; these weights are our reading.

    Args:
      task: a scalar, such as a cross-entropy.
      terms: a pytree of scalars, not negative, such as {layer: fitnets(...)}.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: if there is no term, or the task or a term is no scalar.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> float(jp.distillation.normalized(2.0, [jnp.float32(0.5), jnp.float32(40.0)]))
    6.0

    Reference: Zhang et al., 2024, LAPTOP-Diff: Layer Pruning and Normalized Distillation for
    Compressing Diffusion Models.
    """
    leaves = jax.tree.leaves(terms)
    for x in (task, *leaves):
        if jnp.ndim(x):
            raise ValueError(
                f"normalized weighs scalars, the means over a batch; got {shown(x)}. Take its mean."
            )
    if not leaves:
        raise ValueError("normalized: there are no terms; give at least one loss of features.")
    value = jnp.asarray(task, jnp.float32)
    size = jax.lax.stop_gradient(value)
    for term in leaves:
        still = jax.lax.stop_gradient(term)
        zero = still == 0
        value = value + jnp.where(zero, 0.0, size / jnp.where(zero, 1.0, still)) * term
    return value
