"""The k-th largest of a pytree, without sorting: exact counts, ties to the lower index.

Floats have integer keys that order alike. The key of the k-th largest is found two bits at a
time: a pass over the leaves where they lie compares every entry with three thresholds and counts.
It needs no concatenation across leaves, vmaps, and under sharding its only communication is the
sum of those counts. It stops as soon as a threshold separates k entries from the rest. If other
entries equal the k-th largest, the same loop goes on to find a place among them.

A pass is one *variadic* reduction a leaf, or for all layers of a stack: XLA's CPU backend runs a
reduction of two or more operands ten to forty times faster than one of a single operand (jax
0.10.2), so that three counts cost less than one. All leaves share one loop, which saves most of
the compile time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType

from jaxprune.exact import wide
from jaxprune.selection.counting import MOST, n_true
from jaxprune.selection.deferred import Deferred, read_anew
from jaxprune.selection.uncut import in_order, uncut

_BITS = 2  # of a key in each pass; three would be a tenth faster, and compile a third longer


class _Keys(NamedTuple):
    """Integers that order like the floats of a width: 32 bits, or 64 if there are float64.

    Attributes:
      lowest: the key of -inf: below and above the infinities lie the nans.
      normal: the bits of the smallest normal float: CPUs flush what is below.
    """

    bits: int
    float: Any
    uint: Any
    lowest: Any
    normal: Any

    @property
    def passes(self) -> int:
        """The number of passes that finds any value."""
        return self.bits // _BITS

    @property
    def sign(self) -> Any:
        return self.uint(1 << (self.bits - 1))

    def value(self, key: jax.Array) -> jax.Array:
        """The float of a key."""
        bits = jnp.where(key >= self.sign, key ^ self.sign, ~key)
        return lax.bitcast_convert_type(bits, self.float)


_NARROW = _Keys(32, np.float32, np.uint32, np.uint32(0x007FFFFF), np.uint32(0x00800000))
_WIDE = _Keys(64, np.float64, np.uint64, np.uint64((1 << 52) - 1), np.uint64(1 << 52))


class _Search(NamedTuple):
    """The state of the search, leaf by leaf: all arrays are (leaves,), of leaves with entries.

    Attributes:
      passes: how many were made, int32 scalar.
      low: the largest tried key (uint) with enough entries at or above it.
      n_low: how many entries these are, int32.
      n_high: how many are at or above the next tried key; None unless ranked together.
      k: how many entries the leaf keeps, int32. Where leaves are ranked together, as many as with
        ties at `low`; this is final once `low` is one value.
      seeks: whether `low` is one value and `n_low` is too many. Then the search goes on among the
        entries that equal it, by their places, from the front.
      tied: that value.
    """

    passes: jax.Array
    low: jax.Array
    n_low: jax.Array
    n_high: Any
    k: jax.Array
    seeks: jax.Array
    tied: jax.Array


def _rankable(
    keys: _Keys, x: jax.Array, ties: tuple[Any, Any], last: int, strides: Mapping[int, Any]
) -> jax.Array:
    """Floats that rank like `x`; while ties are sought, entries that equal them rank by place.

    nan ranks as +inf: it is kept and seen, and every count is exact.

    Args:
      last: the place of the first entry, counted from the back of its group; static.
      strides: in entries, of each axis that is not stacked.
    """
    (seeks, tied), x = ties, x.astype(keys.float)
    x = jnp.where(jnp.isnan(x), jnp.inf, x)
    # places become the bits of normal floats: one comparison serves values and places
    place = jnp.full_like(x, keys.uint(last) + keys.normal, dtype=keys.uint)  # sharded like x
    for axis, stride in strides.items():
        place -= lax.broadcasted_iota(keys.uint, x.shape, axis) * stride
    is_tied = lax.bitcast_convert_type(place, keys.float)
    among = jnp.where(x > tied, jnp.inf, jnp.where(x == tied, is_tied, -jnp.inf))
    return jnp.where(seeks, among, x)


def _largest(leaves: Sequence[Any], k: Any, together: bool) -> list[jax.Array]:
    """See `largest`; takes `Deferred` leaves too, whose values are never stored.

    The layers of a stack are read where they lie, and their masks are layers of one stack.

    Args:
      k: int32 (leaves,), or if `together` a `Wide` scalar.
    """
    ranks = _WIDE if any(x.dtype.itemsize == 8 for x in leaves) else _NARROW
    sizes = np.array([x.size for x in leaves], np.int32)
    groups = uncut(leaves)
    lasts = [int(sizes[group.places[0]]) for group in groups]
    strides = [
        {
            axis: jnp.asarray(
                math.prod(group.array.shape[i] for i in group.inner if i > axis), ranks.uint
            )
            for axis in group.inner
        }
        for group in groups
    ]

    def at_least(keys: jax.Array, seeks: jax.Array, tied: jax.Array) -> jax.Array:
        """How many entries of each leaf are at or above each key: int32 (leaves, keys)."""
        # strides are read anew too, or the place of every entry would be written to memory
        arrays, (steps, keys) = read_anew([group.array for group in groups], (strides, keys))
        values, n = ranks.value(keys), []
        for group, x, last, step in zip(groups, arrays, lasts, steps, strict=True):
            ranked = _rankable(ranks, x, (group.spread(seeks), group.spread(tied)), last, step)
            above = [ranked >= group.spread(values[:, i]) for i in range(values.shape[1])]
            n.append(n_true(*above, axes=group.inner).reshape(len(above), -1).T)
        return in_order(groups, n)

    def shares(n_low: jax.Array, n_high: jax.Array) -> jax.Array:
        """How many each leaf keeps: all above `low`, and ties in the earlier leaves first."""
        equal = n_low - n_high
        wanted = wide.minus(k, wide.plus(wide.total(n_high), wide.total_before(equal)))
        return n_high + wide.clipped(wanted, equal)

    def one_pass(state: _Search) -> _Search:
        to_ties = state.passes >= ranks.passes
        places = max(int(sizes.max()).bit_length() - _BITS, 0)
        done = jnp.where(to_ties, state.passes - ranks.passes, state.passes)
        shift = jnp.maximum(jnp.where(to_ties, places, ranks.bits - _BITS) - _BITS * done, 0)
        shift = shift.astype(ranks.uint)
        digits = jnp.arange(1, 1 << _BITS, dtype=ranks.uint)
        keys = jnp.maximum(state.low[:, None] + (digits << shift)[None], ranks.lowest)
        n = at_least(keys, state.seeks, state.tied)
        is_open = state.n_low != state.k  # a leaf that is done stays: its keys could overflow
        enough = (n >= state.k[:, None]) & is_open[:, None]
        n_high: Any = None
        if together:  # the sum decides until only ties are left
            enough = jnp.where(to_ties, enough, wide.at_least(wide.total(n), k)[None])
            n_high = jnp.where(enough, state.n_high[:, None], n).max(1)
        low = state.low + (enough.sum(1, dtype=ranks.uint) << shift)
        n_low = jnp.where(enough, n, state.n_low[:, None]).min(1)
        k_now = jnp.where(to_ties, state.k, shares(n_low, n_high)) if together else k
        ends = (state.passes == ranks.passes - 1) & (n_low != k_now)
        if together:  # a leaf that keeps none of its ties has no place to look for
            none = ends & (k_now == n_high)
            above = none & (k_now > 0)  # a leaf that keeps nothing needs no threshold
            low, n_low, ends = low + above, jnp.where(none, n_high, n_low), ends & ~none
        tied = jnp.where(ends, ranks.value(low), state.tied)
        low = jnp.where(ends, ranks.sign | ranks.normal, low)
        seeks = ends | state.seeks
        return _Search(state.passes + 1, low, n_low, n_high, k_now, seeks, tied)

    zero = _zero(leaves, k)
    none_wanted = ~wide.at_least(k, wide.wide(1)) if together else k < 1
    if not together:
        k = jnp.clip(k, 1, sizes) + zero
    zeros, most = jnp.zeros_like(sizes) + zero, jnp.asarray(sizes) + zero
    start = _Search(
        passes=jnp.int32(0),
        low=zeros.astype(ranks.uint),
        n_low=most,
        n_high=zeros if together else None,
        k=shares(most, zeros) if together else k,
        seeks=zeros < 0,
        tied=zeros.astype(ranks.float),
    )
    end = lax.while_loop(
        lambda state: (state.n_low != state.k).any() & (state.passes < 2 * ranks.passes),
        one_pass,
        start,
    )
    low = ranks.value(jnp.maximum(end.low, ranks.lowest))
    keeps = (end.k > 0) & ~none_wanted
    masks: dict[int, Any] = {}
    for group, last, step in zip(groups, lasts, strides, strict=True):
        ties = group.spread(end.seeks), group.spread(end.tied)
        ranked = _rankable(ranks, jnp.asarray(group.array), ties, last, step)
        mask = (ranked >= group.spread(low)) & group.spread(keeps)
        masks |= zip(group.places, group.parts(mask), strict=True)
    return [masks[i] for i in range(len(leaves))]


def _zero(leaves: Sequence[Any], k: Any) -> jax.Array:
    """0, int32, that varies over the same axes of a `shard_map` as these arrays, for a loop."""
    if AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return jnp.int32(0)
    arrays = jax.tree.leaves([x.operands if isinstance(x, Deferred) else x for x in leaves])
    none = [jnp.atleast_1d(x)[:0].astype(jnp.int32).sum() for x in (*arrays, *jax.tree.leaves(k))]
    return jnp.stack(none).sum(dtype=jnp.int32)


_largest_arrays = jax.jit(_largest, static_argnames="together")


def largest(leaves: Sequence[Any], k: Any, together: bool = False) -> list[jax.Array]:
    """Masks of the largest entries: bool, one of the shape of each leaf, exactly `k` True.

    Args:
      leaves: scores, any real dtype, ranked as float32; as float64 if a leaf is of 64 bits. Among
        equals the lower flat index is kept, and the earlier leaf.
      k: int32, how many to keep: (leaves,) of each leaf, or a scalar for all `together`. Such a
        scalar may be a Python integer or a `Wide` too, larger than int32 can hold.
      together: whether all leaves are ranked as one.

    Raises:
      ValueError: if a leaf has more than `counting.MOST` entries, or all together have 2**31 and
        `k` can't count them.
    """
    filled = [x for x in leaves if x.size]
    if not filled:
        return [jnp.zeros(x.shape, bool) for x in leaves]
    _check_sizes(filled, k, together)
    if together:
        k = k if isinstance(k, wide.Wide) else wide.wide(k)
    else:
        k = jnp.asarray(k, jnp.int32)[jnp.asarray([i for i, x in enumerate(leaves) if x.size])]
    is_deferred = any(isinstance(x, Deferred) for x in filled)
    masks = iter((_largest if is_deferred else _largest_arrays)(filled, k, together))
    return [next(masks) if x.size else jnp.zeros(x.shape, bool) for x in leaves]


def _check_sizes(leaves: Sequence[Any], k: Any, together: bool) -> None:
    most, total = max(x.size for x in leaves), sum(x.size for x in leaves)
    if most > MOST:
        raise ValueError(
            f"the weights of a leaf are ranked in int32, at most {MOST:,}; got a leaf of {most:,}. "
            "Split it, as in two stacks of layers, or exclude it with a narrower prunable=..."
        )
    if together and total >= 2**31 and not isinstance(k, (int, wide.Wide)):
        raise ValueError(
            f"this method counts in int32, below {2**31:,} weights in all; got {total:,}. "
            "select and prune count further, as does a layer-wise allocation such as erk or "
            "uniform; or take a narrower prunable=..."
        )
