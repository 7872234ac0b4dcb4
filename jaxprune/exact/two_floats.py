"""Sums of many float32 without visible rounding: a number as two float32, of some 46 bits.

In float32 a sum of a million numbers, or a product of two, is wrong in the seventh digit, and a
count computed from it is wrong by more than one. JAX has float64 only with a global flag.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class TwoFloats(NamedTuple):
    """The number `high + low`, with |low| at most half of high's last bit; float32 of one shape."""

    high: jax.Array
    low: jax.Array


def two_floats(value: Any) -> TwoFloats:
    """A Python float, or float32."""
    high = jnp.asarray(value, jnp.float32)
    if isinstance(value, float):
        return TwoFloats(high, jnp.asarray(value - float(np.float32(value)), jnp.float32))
    return TwoFloats(high, jnp.zeros_like(high))


def total(x: jax.Array) -> TwoFloats:
    """The sum of all entries of a float32 array, in one pass."""
    zeros = (np.float32(0), np.float32(0))
    add = lambda a, b: tuple(plus(TwoFloats(*a), TwoFloats(*b)))
    return TwoFloats(*lax.reduce((x, jnp.zeros_like(x)), zeros, add, tuple(range(x.ndim))))


def plus(a: TwoFloats, b: TwoFloats) -> TwoFloats:
    """A + b."""
    high, rounded = _sum(a.high, b.high)
    return _tidy(high, rounded + (a.low + b.low))


def times(a: TwoFloats, b: TwoFloats) -> TwoFloats:
    """A * b."""
    high, rounded = _product(a.high, b.high)
    return _tidy(high, rounded + (a.high * b.low + a.low * b.high))


def over(a: TwoFloats, b: TwoFloats) -> TwoFloats:
    """A / b."""
    high = a.high / b.high
    product, rounded = _product(high, b.high)
    rest = ((a.high - product) - rounded) + (a.low - high * b.low)
    return _tidy(high, rest / b.high)


def power(a: TwoFloats, exponent: float) -> TwoFloats:
    """a**exponent, for a > 0 and an exponent that is not negative.

    The power of the integer part is exact; that of the rest has the precision of float32.
    """
    n = int(exponent + 1e-9)  # 0.8 / (1 - 0.8) is 4.000000000000001, others are a little less
    rest = exponent - n
    result = two_floats(jnp.ones_like(a.high))
    for _ in range(n):
        result = times(result, a)
    if rest > 1e-9:
        root = a.high**rest
        result = times(result, TwoFloats(root, root * (rest * a.low / a.high)))
    return result


def ceiling(a: TwoFloats, tolerance: float) -> jax.Array:
    """The smallest int32 that is at least a (1 - tolerance)."""
    floor = jnp.floor(a.high)
    rest = (a.high - floor) + (a.low - tolerance * a.high)
    return floor.astype(jnp.int32) + jnp.ceil(rest).astype(jnp.int32)


def _sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A + b, rounded, and the rounding error (Knuth)."""
    high = a + b
    of_b = high - a
    return high, (a - (high - of_b)) + (b - of_b)


def _product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A * b, rounded, and the rounding error (Dekker): halves of 12 bits multiply exactly."""
    high = a * b
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    return high, ((a1 * b1 - high) + a1 * b2 + a2 * b1) + a2 * b2


def _halves(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    bits = lax.bitcast_convert_type(a, jnp.int32)
    upper = lax.bitcast_convert_type(bits & ~0xFFF, jnp.float32)
    return upper, a - upper


def _tidy(high: jax.Array, low: jax.Array) -> TwoFloats:
    together = high + low
    return TwoFloats(together, low - (together - high))
