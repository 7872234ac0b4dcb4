"""Averages of integers, such as counters of steps: float32 can't tell those above 2**24 apart."""

from __future__ import annotations

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.exact.two_floats import TwoFloats, plus, times, two_floats

_BITS = 16


def average_of_integers(weights: Any, x: jax.Array) -> jax.Array:
    """`round(sum over i of weights[i] * x[i])`, half to even: like a member, in its dtype.

        x_0 + sum over i of weights[i] (x_i - x_0)

    Exact for 32 bits if the weights are exact: halves of 16 bits are floats, and two floats hold 46
    bits. Under x64 it is computed in float64.

    Args:
      weights: (members,), of sum 1.
      x: integers (members, ...).
    """
    first = x[0]
    if jax.dtypes.canonicalize_dtype(jnp.float64) == jnp.float64:
        shares = jnp.asarray(weights, jnp.float64).reshape(-1, *[1] * (x.ndim - 1))
        change = (shares * (x.astype(jnp.float64) - first.astype(jnp.float64)[None])).sum(0)
        return _rounded(first + jnp.floor(change).astype(x.dtype), change - jnp.floor(change))
    terms = []
    for i in range(1, len(x)):
        share = float(weights[i]) if isinstance(weights, np.ndarray) else weights[i]
        terms.append(times(two_floats(share), _apart(x[i], first)))
    if not terms:
        return first
    together = reduce(plus, terms)
    upper = jnp.floor(together.high / 2**_BITS)
    lower = (together.high - upper * 2**_BITS) + together.low
    # the sum wraps around as integers do, so that the result is right
    added = (upper.astype(jnp.int32) << _BITS) + jnp.floor(lower).astype(jnp.int32)
    down = (first.astype(jnp.int32) + added).astype(x.dtype)
    return _rounded(down, lower - jnp.floor(lower))


def _rounded(down: jax.Array, rest: jax.Array) -> jax.Array:
    """`down + rest` with 0 <= rest < 1, to the nearest integer, half to even."""
    up = (rest > 0.5) | ((rest == 0.5) & (down % 2 == 1))
    return down + up.astype(down.dtype)


def _apart(a: jax.Array, b: jax.Array) -> TwoFloats:
    """A - b of integers of up to 32 bits."""
    low = 2**_BITS - 1
    halves = lambda n: ((n >> _BITS).astype(jnp.int32), (n & low).astype(jnp.int32))
    (a_high, a_low), (b_high, b_low) = (
        halves(n if n.dtype.itemsize > 2 else n.astype(jnp.int32)) for n in (a, b)
    )
    to_float = lambda n: two_floats(n.astype(jnp.float32))
    high = TwoFloats(to_float(a_high - b_high).high * 2.0**_BITS, jnp.zeros(a.shape))
    return plus(high, to_float(a_low - b_low))
