"""The k-th largest of a pytree, without sorting: exact counts, ties to the lower index.

Floats have integer keys that order alike. The key of the k-th largest is found two bits at a
time: a pass over the leaves where they lie compares every entry with three thresholds and counts.
It needs no concatenation across leaves, vmaps, and under sharding its only communication is the
sum of those counts. It stops as soon as a threshold separates k entries from the rest; should the
k-th largest have equals, the same loop goes on to find a place among them.

A pass is one *variadic* reduction a leaf: XLA's CPU backend runs a reduction of two or more
operands ten to forty times faster than one of a single operand (jax 0.10.2), so that three counts
cost less than one. All leaves share one loop, which saves most of what it costs to compile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.counting import n_true
from jaxprune.deferred import Deferred, read_anew

_LOWEST = np.uint32(0x007FFFFF)  # the key of -inf: below and above the infinities lie the nans
_NORMAL_BITS = 0x00800000  # the bits of the smallest normal float: CPUs flush what is below
_FIRST_NORMAL = np.uint32(1 << 31 | _NORMAL_BITS)  # its key
_BITS = 2  # of a key, found in each pass; three would be a tenth faster, and compile a third longer
_VALUE_PASSES = -(-32 // _BITS)


def _value(key: jax.Array) -> jax.Array:
    """The float32 of a uint32 key. Keys order like the floats that they stand for."""
    bits = jnp.where(key >> 31, key ^ jnp.uint32(1 << 31), ~key)
    return lax.bitcast_convert_type(bits, jnp.float32)


class _Search(NamedTuple):
    """The key of the k-th largest of each group, as far as it is known.

    Attributes:
      passes: how many were made, int32 scalar.
      low: the largest key, of those tried, with `k` entries or more at or above it; (groups,).
      n_low: how many these are, int32 (groups,).
      tied: once `low` is one value and `n_low` too many, that value: then as many of those that
        equal it are sought as are wanted, from the front, by their places. Else nan; (groups,).
    """

    passes: jax.Array
    low: jax.Array
    n_low: jax.Array
    tied: jax.Array


def _rankable(x: jax.Array, tied: jax.Array, last: int, strides: Sequence[Any]) -> jax.Array:
    """float32 that rank like `x`; or if `tied` is no nan, those that equal it by their places.

    nan ranks as +inf, so that it is kept and seen, and every count is exact.

    Args:
      last: the place of the first entry, counted from the back of its group; static.
      strides: of each axis, in entries.
    """
    x = x.astype(jnp.float32)
    x = jnp.where(jnp.isnan(x), jnp.inf, x)
    # places become the bits of normal floats: one comparison serves values and places
    place = jnp.full_like(x, np.uint32(last + _NORMAL_BITS), dtype=jnp.uint32)  # sharded like x
    for axis, stride in enumerate(strides):
        place -= lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    is_tied = lax.bitcast_convert_type(place, jnp.float32)
    among = jnp.where(x > tied, jnp.inf, jnp.where(x == tied, is_tied, -jnp.inf))
    return jnp.where(jnp.isnan(tied), x, among)


def _largest(leaves: Sequence[Any], k: jax.Array, together: bool) -> list[jax.Array]:
    """See `largest`; also takes `Deferred` leaves, whose values are then never written."""
    sizes = [x.size for x in leaves]
    # a group is what is ranked together; its entries are numbered through
    group = [0 if together else i for i in range(len(leaves))]
    last = [sum(sizes[i:]) if together else size for i, size in enumerate(sizes)]
    total = np.array([sum(sizes)] if together else sizes, np.int32)
    strides = [
        [jnp.uint32(math.prod(x.shape[axis + 1 :])) for axis in range(x.ndim)] for x in leaves
    ]

    def at_least(keys: jax.Array, tied: jax.Array) -> jax.Array:
        """How many entries of each group are at or above each key: int32 (groups, keys)."""
        # strides are read anew too, or the place of every entry would be written to memory
        arrays, (steps, keys) = read_anew(leaves, (strides, keys))
        values, n = _value(keys), []
        for x, g, first, step in zip(arrays, group, last, steps, strict=True):
            ranked = _rankable(x, tied[g], first, step)
            n.append(n_true(*(ranked >= value for value in values[g])))
        # int32 even where jax_enable_x64 would make it wider
        counts = jnp.stack(n)
        return counts.sum(0, keepdims=True, dtype=jnp.int32) if together else counts

    def one_pass(state: _Search) -> _Search:
        to_ties = state.passes >= _VALUE_PASSES
        places = max(int(total.max()).bit_length() - _BITS, 0)
        done = jnp.where(to_ties, state.passes - _VALUE_PASSES, state.passes)
        shift = jnp.maximum(jnp.where(to_ties, places, 32 - _BITS) - _BITS * done, 0).astype(
            jnp.uint32
        )
        digits = jnp.arange(1, 1 << _BITS, dtype=jnp.uint32)
        keys = jnp.maximum(state.low[:, None] + (digits << shift)[None], _LOWEST)
        n = at_least(keys, state.tied)
        enough = n >= k[:, None]
        low = state.low + (enough.sum(1, dtype=jnp.uint32) << shift)
        n_low = jnp.where(enough, n, state.n_low[:, None]).min(1)
        ends = (state.passes == _VALUE_PASSES - 1) & (n_low != k)
        return _Search(
            passes=state.passes + 1,
            low=jnp.where(ends, _FIRST_NORMAL, low),
            n_low=n_low,
            tied=jnp.where(ends, _value(low), state.tied),
        )

    k, wants_none = jnp.clip(k, 1, total), k < 1
    start = _Search(
        passes=jnp.int32(0),
        low=jnp.zeros(total.shape, jnp.uint32),
        n_low=jnp.asarray(total),
        tied=jnp.full(total.shape, jnp.nan, jnp.float32),
    )
    found = lax.while_loop(
        lambda state: (state.n_low != k).any() & (state.passes < 2 * _VALUE_PASSES), one_pass, start
    )
    low = _value(jnp.maximum(found.low, _LOWEST))
    threshold = jnp.where(wants_none, jnp.nan, low)  # nothing is at least nan
    return [
        _rankable(jnp.asarray(x), found.tied[g], first, step) >= threshold[g]
        for x, g, first, step in zip(leaves, group, last, strides, strict=True)
    ]


_largest_arrays = jax.jit(_largest, static_argnames="together")


def largest(leaves: Sequence[Any], k: Any, together: bool = False) -> list[jax.Array]:
    """Masks of the largest entries: bool, one of the shape of each leaf, exactly `k` True.

    Args:
      leaves: scores, any real dtype, ranked as float32. Among equals the lower flat index is
        kept, and the earlier leaf.
      k: int32, how many to keep: (leaves,) of each leaf, or a scalar, of all `together`.
      together: whether all leaves are ranked as one.

    Raises:
      ValueError: if 2**31 - 2**24 entries or more are to be ranked together.
    """
    filled = [x for x in leaves if x.size]
    k = jnp.atleast_1d(jnp.asarray(k, jnp.int32))
    if not together:
        k = k[jnp.asarray([i for i, x in enumerate(leaves) if x.size], jnp.int32)]
    most = sum(x.size for x in filled) if together else max((x.size for x in filled), default=0)
    if most >= 2**31 - 2**24:
        raise ValueError(
            f"ranking counts in int32, below {2**31 - 2**24:,} weights; got {most:,}. Use a "
            "layer-wise allocation such as erk or uniform, or a narrower prunable=..."
        )
    if not filled:
        return [jnp.zeros(x.shape, bool) for x in leaves]
    is_deferred = any(isinstance(x, Deferred) for x in filled)
    masks = iter((_largest if is_deferred else _largest_arrays)(filled, k, together))
    return [next(masks) if x.size else jnp.zeros(x.shape, bool) for x in leaves]
