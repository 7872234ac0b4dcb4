"""Wanda: weights by what they contribute to an output, compared within each output."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.base import call_first
from jaxprune.calibration.method import Inputs, Method, Target, best, check_target


@call_first("jp.calibration.wanda(0.5)")
def wanda(sparsity: Target) -> Method:
    """The score of a weight is |w| times the norm of its input; the weights that stay do not move.

        score[i, o] = |w[i, o]| ||x_i||, compared over the inputs i of each output o

    Args:
      sparsity: the fraction of each output, `round(sparsity * inputs)` weights (the authors' code
        rounds down); or (n, m), n of m consecutive inputs of each output stay.

    Raises:
      ValueError: for a fraction outside [0, 1), and for an (n, m) that can't be.

    Reference: Sun et al., 2024, A Simple and Effective Pruning Approach for Large Language Models.
    """
    check_target("wanda", sparsity)

    def method(weight: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        scores = jnp.abs(weight) * jnp.sqrt(inputs.square_norms())[:, None]
        of_output = lambda column: best(column[:, None], sparsity)[:, 0]
        mask = jax.vmap(of_output, in_axes=1, out_axes=1)(scores)
        return jnp.where(mask, weight, 0), mask

    return method
