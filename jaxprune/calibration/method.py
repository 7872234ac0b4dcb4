"""The type of calibrated methods, and what they have in common: inputs and sparsities."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.base import check_fraction
from jaxprune.pattern import nm, unstructured

Target = float | tuple[int, int]  # the fraction that is pruned, or (n, m): n of m are kept


class Inputs(NamedTuple):
    """What a weight matrix (inputs, outputs) is multiplied with, over all batches.

    Attributes:
      batches: arrays (rows, inputs), one for each batch.
    """

    batches: tuple[jax.Array, ...]

    @property
    def rows(self) -> int:
        """The number of rows in all batches."""
        return sum(len(x) for x in self.batches)

    def square_norms(self) -> jax.Array:
        """The squared norm of each input over all rows, float32 (inputs,)."""
        return sum((jnp.square(x.astype(jnp.float32)).sum(0) for x in self.batches), jnp.float32(0))

    def second_moment(self) -> jax.Array:
        """X'X over all rows, float32 (inputs, inputs)."""
        wide = (x.astype(jnp.float32) for x in self.batches)
        products = (jnp.matmul(x.T, x, precision=lax.Precision.HIGHEST) for x in wide)
        return sum(products, jnp.float32(0))


Method = Callable[[jax.Array, Inputs], tuple[jax.Array, jax.Array]]
"""`(weight, inputs) -> (pruned weight, mask)`.

The weight and the pruned weight are float32 (inputs, outputs), the mask is bool (inputs, outputs),
True where the weight stays.
"""


def check_target(method: str, sparsity: Target) -> None:
    """Raises ValueError unless it is a fraction in [0, 1) or (n, m) with 1 <= n <= m."""
    if isinstance(sparsity, tuple):
        nm(*sparsity)
    else:
        check_fraction(sparsity, f"{method} takes it, or (n, m), such as (2, 4).")


def best(scores: jax.Array, sparsity: Target) -> jax.Array:
    """The mask (inputs, outputs) of the highest scores: over the matrix, or n of m inputs."""
    if isinstance(sparsity, tuple):
        n, m = sparsity
        return nm(n, m)(scores, 1 - n / m)
    return unstructured(scores, sparsity)
