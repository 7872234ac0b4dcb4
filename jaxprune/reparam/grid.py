"""Uniform grids: which weights share one, and weights rounded to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.gates.gate import logits as one_for_each
from jaxprune.prunable.layers import split_like
from jaxprune.reparam.reparameterization import check_floats

BITS = range(2, 17)
Axes = int | Sequence[int] | None


def check_bits(what: str, bits: int) -> None:
    """Raises ValueError unless `bits` is an int from 2 to 16."""
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or bits not in BITS:
        raise ValueError(
            f"{what}: bits is an int from {BITS[0]} to {BITS[-1]}; got {bits!r}. One bit has no "
            "grid with a zero, and float32 has all that 17 bits have."
        )


def shared(what: str, params: Params, axes: Axes, prunable: Callable[[Params], Params]) -> Any:
    """Ones of the shapes of the grids: one entry for each grid, as in `gates.logits`.

    Raises:
      TypeError: for a leaf of integers.
      ValueError: if no leaf is chosen, or a leaf has no such axis.
    """
    chosen = prunable(params)
    check_floats(what, chosen, "quantize", "are quantized")
    return one_for_each(chosen, axes, 1.0)


def leaves_of(weights: Params, like: Any) -> Any:
    """The leaves of the params that have a grid, layer by layer; None for the others."""
    return split_like(weights, like)


def over(grid: jax.Array) -> tuple[int, ...]:
    """The axes along which all weights share a grid of this shape."""
    return tuple(axis for axis, n in enumerate(grid.shape) if n == 1)


def ends_of(w: jax.Array, grid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least and the largest weight of each grid."""
    low, high = (end(w, over(grid), keepdims=True) for end in (jnp.min, jnp.max))
    return low, high


def power_of_two(step: jax.Array) -> jax.Array:
    """The least power of two that is not smaller, exactly; 0 stays 0."""
    fraction, exponent = jnp.frexp(step)
    return jnp.where(step > 0, jnp.ldexp(1.0, exponent - (fraction == 0.5)), 0.0)


def rounded(w: jax.Array, step: jax.Array, lowest: Any, highest: Any) -> jax.Array:
    """The nearest level of each weight, an integer as a float; 0 where the step is 0.

    Ties go to the even level.
    """
    return jnp.clip(jnp.round(w / jnp.where(step > 0, step, 1)), lowest, highest)


@jax.custom_vjp
def through(w: jax.Array, used: jax.Array, passes: jax.Array) -> jax.Array:
    """`used`, whose gradient goes to `w` where it `passes`: the straight-through estimator."""
    return used


def _forward(w: jax.Array, used: jax.Array, passes: jax.Array) -> Any:
    return used, passes


def _backward(passes: jax.Array, g: jax.Array) -> Any:
    return jnp.where(passes, g, 0), None, None


through.defvjp(_forward, _backward)
