"""Magnitude pruning of one matrix after the other: what calibrated methods are compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.base import call_first
from jaxprune.calibration.method import Inputs, Method, Target, best, check_target


@call_first("jp.calibration.magnitude(0.5)")
def magnitude(sparsity: Target) -> Method:
    """The smallest weights of each matrix go; nothing is read of the inputs.

    Args:
      sparsity: the fraction of each matrix, `round(sparsity * size)` weights; or (n, m), n of m
        consecutive inputs of each output stay.

    Raises:
      ValueError: for a fraction outside [0, 1), and for an (n, m) that can't be.
    """
    check_target("magnitude", sparsity)

    def method(weight: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        mask = best(jnp.abs(weight), sparsity)
        return jnp.where(mask, weight, 0), mask

    return method
