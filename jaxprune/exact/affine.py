"""`round(a n + b)` for a traced integer n, as exact as in Python: in limbs of twelve bits.

There is no float64 without a flag, and float32 can't name one weight among 25 million.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

_BITS, _LIMBS = 12, 10  # products of two limbs, and a few of their sums, fit in int32
_FRACTION = 7  # limbs behind the point; three before it hold any int32
_DIGITS = 15  # of a float64 are exact


def rounded(
    n: jax.Array, lines: Sequence[Sequence[tuple[Any, Any]]], sizes: Sequence[int], row: Any = 0
) -> jax.Array:
    """`clip(round(slope * n + offset), 0, size)`, half to even: int32 (leaves,).

    A number that float64 can't tell from a half counts as a half, as in `counting.count`.

    Args:
      n: int32 scalar, at least 0; may be traced.
      lines: rows of (slope, offset), one a leaf: Python numbers, `Fraction` for exact ones.
      sizes: of the leaves, (leaves,).
      row: which of the rows, int32 scalar; may be traced.
    """
    nearly = [Fraction(1, 2 * 10 ** (_DIGITS - len(str(size)))) for size in sizes]
    half = Fraction(1, 2)
    past_half = lambda sign: [
        [offset + half + sign * near for (_, offset), near in zip(row, nearly, strict=True)]
        for row in lines
    ]
    slopes = _table([[slope for slope, _ in row] for row in lines])
    up, down = (_floor(n, slopes[row], _table(past_half(sign))[row]) for sign in (1, -1))
    nearest = jnp.where((up != down) & (up % 2 == 1), down, up)  # they differ at a half
    return jnp.clip(nearest, 0, jnp.asarray(sizes, jnp.int32))


def _table(rows: Sequence[Sequence[Any]]) -> jax.Array:
    """Each number in limbs, the lowest first, below zero too: int32 (rows, leaves, limbs)."""
    return jnp.asarray([[_limbs(Fraction(x)) for x in row] for row in rows], jnp.int32)


def _limbs(x: Fraction) -> list[int]:
    n = round(x * 2 ** (_BITS * _FRACTION)) % 2 ** (_BITS * _LIMBS)
    return [n >> (_BITS * i) & (2**_BITS - 1) for i in range(_LIMBS)]


def _floor(n: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """The integer part of `a n + b`."""
    low = 2**_BITS - 1
    digits = [n >> (_BITS * i) & low for i in range(3)]
    carry, limbs = jnp.int32(0), []
    for i in range(_LIMBS):
        products = [d * a[:, i - k] for k, d in enumerate(digits) if i >= k]
        column = b[:, i] + carry + sum(products)
        limbs.append(column & low)
        carry = column >> _BITS
    return sum((x << (_BITS * i) for i, x in enumerate(limbs[_FRACTION:])), jnp.int32(0))
