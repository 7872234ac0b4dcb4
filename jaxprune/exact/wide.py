"""Counts that int32 can't hold, as two int32 words: for models of billions of weights.

JAX has int64 only with a global flag, and float32 can't name one of billions of weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_BITS = 16
_LOW = (1 << _BITS) - 1


class Wide(NamedTuple):
    """The number `high * 2**16 + low`, with 0 <= low < 2**16; int32 of one shape."""

    high: jax.Array
    low: jax.Array


def wide(n: Any) -> Wide:
    """A Python integer of up to 46 bits, or int32, as two words."""
    return Wide(jnp.asarray(n >> _BITS, jnp.int32), jnp.asarray(n & _LOW, jnp.int32))


def total(n: jax.Array) -> Wide:
    """The sum over the first axis, which is shorter than 2**15, of int32."""
    words = wide(n)
    return _carried(words.high.sum(0, dtype=jnp.int32), words.low.sum(0, dtype=jnp.int32))


def total_before(n: jax.Array) -> Wide:
    """For each entry of the first axis the sum of those before it."""
    words = wide(n)
    return _carried(*(jnp.cumsum(w, 0, dtype=jnp.int32) - w for w in words))


def plus(a: Wide, b: Wide) -> Wide:
    return _carried(a.high + b.high, a.low + b.low)


def minus(a: Wide, b: Wide) -> Wide:
    return _carried(a.high - b.high, a.low - b.low)


def times(a: jax.Array, b: int) -> Wide:
    """`a * b`, of int32 `a` below 2**24 and an integer `b` below 2**19."""
    upper, lower = (a >> 12) * b, (a & 4095) * b  # upper counts 4096s
    return plus(Wide(upper >> (_BITS - 12), (upper & ((1 << (_BITS - 12)) - 1)) << 12), wide(lower))


def at_least(a: Wide, b: Wide) -> jax.Array:
    """Whether a >= b: bool."""
    return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def clipped(a: Wide, most: jax.Array) -> jax.Array:
    """`a`, at least 0 and at most `most`, int32."""
    n = jnp.where(at_least(a, wide(most)), most, (a.high << _BITS) | a.low)
    return jnp.where(a.high < 0, 0, n)


def _carried(high: jax.Array, low: jax.Array) -> Wide:
    return Wide(high + (low >> _BITS), low & _LOW)  # the shift rounds down, below zero too
