"""Exact counts: of the weights that a sparsity prunes, of a fraction, of True entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import is_count
from jaxprune.exact.wide import Wide, minus, plus, times, wide

MOST = 2**31 - 2**24 - 1  # entries of a leaf that can be counted and ranked
_GRID = 10_000_000  # traced sparsities are read as decimals of seven digits


def count(sparsity: Any, size: int) -> Any:
    """`round(sparsity * size)`, half to even: how many of `size` are pruned, int.

    A Python float gives a Python int; an array gives an int32 array. Float32 can't hold 0.9, and
    `0.9 * 25_557_032` in float32 is wrong: an array is read as the decimal of seven digits next
    to it, and multiplied in integers. An integer is already a count and comes back unchanged.

    Raises:
      ValueError: for an array, if `size` is more than `MOST`.
    """
    if isinstance(sparsity, (int, np.integer)):
        return min(int(sparsity), size)
    if isinstance(sparsity, float):  # np.float64 too
        # fifteen digits first: 0.145 * 100 is 14.499999999999998 in binary
        return round(round(sparsity * size, _digits(size)))
    if size > MOST:
        raise ValueError(
            f"the weights of a leaf are counted in int32, at most {MOST:,}; got a leaf of "
            f"{size:,}. Split it, as in two stacks of layers, or exclude it with a narrower "
            "prunable=..."
        )
    # a traced value can't be refused: if it is no sparsity, it prunes none or all
    sparsity = jnp.asarray(sparsity)
    if jnp.issubdtype(sparsity.dtype, jnp.integer):
        return jnp.clip(sparsity.astype(jnp.int32), 0, size)
    quotient, remainder = _divided(_decimal(sparsity.astype(jnp.float32)), size)
    above = remainder > _GRID // 2
    tie_to_even = (remainder == _GRID // 2) & (quotient % 2 == 1)
    return quotient + (above | tie_to_even).astype(jnp.int32)


def left(sparsity: Any, size: int) -> Wide:
    """`size - count(sparsity, size)`, how many are kept; `size` may be more than int32 can hold."""
    if isinstance(sparsity, (int, float, np.integer)):
        return wide(size - count(sparsity, size))
    sparsity = jnp.asarray(sparsity)
    if size <= MOST or jnp.issubdtype(sparsity.dtype, jnp.integer):
        return minus(wide(size), wide(count(sparsity, min(size, MOST))))
    decimal, (units, rest) = _decimal(sparsity.astype(jnp.float32)), divmod(size, _GRID)
    quotient, remainder = _divided(decimal, rest)
    pruned = plus(times(decimal, units), wide(quotient))
    rounds_up = (remainder > _GRID // 2) | ((remainder == _GRID // 2) & (pruned.low % 2 == 1))
    return minus(wide(size), plus(pruned, wide(rounds_up.astype(jnp.int32))))


def numerator(sparsity: jax.Array, size: int) -> tuple[jax.Array, int]:
    """A traced sparsity as a ratio (n, unit): n / unit is the fraction of `size` pruned."""
    if is_count(sparsity):
        return jnp.maximum(sparsity.astype(jnp.int32), 0), max(size, 1)
    return _decimal(sparsity.astype(jnp.float32)), _GRID


def _digits(size: int) -> int:
    """How many decimals of a number up to `size` are exact in fifteen digits."""
    return 15 - len(str(size))


def portion(fraction: Any, n: jax.Array, up: bool = False) -> jax.Array:
    """`floor(fraction * n)`, or with `up` its ceiling, int32; exact, and the same on any device.

    Args:
      fraction: in [0, 1], read as the decimal of seven digits next to it; may be traced.
      n: int32, at least 0.
    """
    quotient, remainder = _divided(_decimal(jnp.asarray(fraction, jnp.float32)), n)
    return quotient + (remainder > 0) if up else quotient


def _decimal(fraction: jax.Array) -> jax.Array:
    """`round(fraction * 10**7)`, int32: in float32 the product itself would be off by one."""
    bits = jnp.round(jnp.clip(fraction, 0.0, 1.0) * 2**24).astype(jnp.int32)
    # 10**7 / 2**24 = 78125 / 2**17, in two halves of twelve bits
    high, low = (bits >> 12) * 78125, (bits & 4095) * 78125
    return (high >> 5) + (((high & 31) * 4096 + low + 2**16) >> 17)


def _divided(decimal: jax.Array, n: Any) -> tuple[jax.Array, jax.Array]:
    """Quotient and remainder of `decimal * n / 10**7`, in int32; decimal <= 10**7, n < 2**31."""
    units, rest = n // _GRID, n % _GRID
    # schoolbook multiplication of decimal and rest in base 10**4: no product reaches 2**31
    high, low = decimal // 10_000, decimal % 10_000
    rest_high, rest_low = rest // 10_000, rest % 10_000
    middle = high * rest_low + low * rest_high
    remainder = (middle % 1_000) * 10_000 + low * rest_low
    quotient = decimal * units + 10 * high * rest_high + middle // 1_000 + remainder // _GRID
    return quotient, remainder % _GRID


def n_true(*flags: jax.Array, axes: Sequence[int] | None = None) -> jax.Array:
    """How many are True in each of `flags` (bool, of one shape), int32, in one pass over memory.

    Args:
      axes: the axes to count along, by default all: the result is (flags, *other axes).
    """
    # never one operand: XLA's CPU backend is forty times slower at that (see largest.py)
    operands = flags if len(flags) > 1 else (flags[0], ~flags[0])
    zeros = (jnp.int32(0),) * len(operands)
    add = lambda xs, ys: tuple(x + y for x, y in zip(xs, ys, strict=True))
    ints = tuple(flag.astype(jnp.int32) for flag in operands)
    along = tuple(range(flags[0].ndim)) if axes is None else tuple(axes)
    counts = lax.optimization_barrier(lax.reduce(ints, zeros, add, along))
    return jnp.stack(counts[: len(flags)])
