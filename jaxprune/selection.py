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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval

_GRID = 10_000_000  # traced sparsities are read as decimals of seven digits


# --- counts ----------------------------------------------------------------------------------


def count(sparsity: Any, size: int) -> Any:
    """`round(sparsity * size)`, half to even: how many of `size` are pruned, int.

    A Python float gives a Python int; an array gives an int32 array. Float32 can't hold 0.9, and
    `0.9 * 25_557_032` in float32 is wrong: an array is read as the decimal of seven digits next
    to it, and multiplied in integers. An integer is already a count and comes back unchanged.
    """
    if isinstance(sparsity, (int, np.integer)):
        return min(int(sparsity), size)
    if isinstance(sparsity, float):  # np.float64 too
        # fifteen digits first: 0.145 * 100 is 14.499999999999998 in binary
        return round(round(sparsity * size, 15 - len(str(size))))
    # A traced value can't be refused: one that is no sparsity prunes none, or all.
    sparsity = jnp.asarray(sparsity)
    if jnp.issubdtype(sparsity.dtype, jnp.integer):
        return jnp.clip(sparsity.astype(jnp.int32), 0, size)
    quotient, remainder = _divided(_decimal(sparsity.astype(jnp.float32)), size)
    above = remainder > _GRID // 2
    tie_to_even = (remainder == _GRID // 2) & (quotient % 2 == 1)
    return quotient + (above | tie_to_even).astype(jnp.int32)


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
    whole, rest = n // _GRID, n % _GRID
    # schoolbook multiplication of decimal and rest in base 10**4: no product reaches 2**31
    high, low = decimal // 10_000, decimal % 10_000
    rest_high, rest_low = rest // 10_000, rest % 10_000
    middle = high * rest_low + low * rest_high
    remainder = (middle % 1_000) * 10_000 + low * rest_low
    quotient = decimal * whole + 10 * high * rest_high + middle // 1_000 + remainder // _GRID
    return quotient, remainder % _GRID


def n_true(*flags: jax.Array) -> jax.Array:
    """How many are True in each of `flags` (bool, of one shape), int32, in one pass over memory."""
    # never one operand alone: XLA's CPU backend is forty times slower at that (see above)
    operands = flags if len(flags) > 1 else (flags[0], ~flags[0])
    zeros = (jnp.int32(0),) * len(operands)
    add = lambda xs, ys: tuple(x + y for x, y in zip(xs, ys, strict=True))
    ints = tuple(flag.astype(jnp.int32) for flag in operands)
    counts = lax.optimization_barrier(lax.reduce(ints, zeros, add, tuple(range(flags[0].ndim))))
    return jnp.stack(counts[: len(flags)])


# --- scores that are never written ----------------------------------------------------------------


class Deferred:
    """An array that is recomputed wherever it is read, so that no copy of it is ever stored.

    `jnp.asarray` computes it; `shape`, `dtype`, `size` and `ndim` are known.
    """

    def __init__(self, compute: Callable[..., jax.Array], operands: tuple, aval: Any):
        self.compute, self.operands, self.aval = compute, operands, aval
        self.shape, self.dtype = aval.shape, aval.dtype
        self.size, self.ndim = math.prod(aval.shape), len(aval.shape)

    def __jax_array__(self) -> jax.Array:
        return self.compute(*self.operands)


# Recomputing these in each of some fifteen passes is cheaper than one write of their result.
_ELEMENTWISE = {
    "abs", "add", "broadcast_in_dim", "convert_element_type", "copy", "div", "eq", "ge", "gt",
    "integer_pow", "is_finite", "jit", "le", "lt", "max", "min", "mul", "ne", "neg", "not", "and",
    "or", "pjit", "select_n", "sign", "sqrt", "square", "squeeze", "stop_gradient", "sub",
}  # fmt: skip


def _is_elementwise(jaxpr: Any) -> bool:
    return all(
        str(eqn.primitive) in _ELEMENTWISE
        and all(_is_elementwise(inner.jaxpr) for inner in eqn.params.values() if _is_jaxpr(inner))
        for eqn in jaxpr.eqns
    )


def _is_jaxpr(param: Any) -> bool:
    return isinstance(param, ClosedJaxpr)


def defer(f: Callable[..., Any], *args: Any) -> Any:
    """`f(*args)`, a pytree of arrays, with `Deferred` leaves wherever these are cheap to recompute.

    A leaf is deferred if it is computed elementwise from the arrays in `args`; where there is
    more to it (a sort, a sum, random bits) the leaf is an ordinary array. `args` may have deferred
    leaves too.
    """
    operands = jax.tree.leaves(args)
    known = jax.tree.map(lambda x: x.aval if isinstance(x, Deferred) else x, args)
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*known)
    avals, treedef = jax.tree.flatten(shapes)
    each = range(len(avals))
    parts = [partial_eval.dce_jaxpr(closed.jaxpr, [i == j for j in each]) for i in each]
    is_cheap = [_is_elementwise(own) for own, _ in parts]
    # only for what is not; the compiler leaves out the rest
    computed = avals if all(is_cheap) else jaxpr_as_fun(closed)(*map(jnp.asarray, operands))

    def leaf(index: int) -> Any:
        if not is_cheap[index]:
            return computed[index]
        own, used = parts[index]
        compute = jaxpr_as_fun(ClosedJaxpr(own, closed.consts))
        kept = [x for x, is_used in zip(operands, used, strict=True) if is_used]
        flat = [x.operands if isinstance(x, Deferred) else (x,) for x in kept]

        def recomputed(*xs: jax.Array) -> jax.Array:
            rest = iter(xs)
            values = [[next(rest) for _ in own] for own in flat]
            pairs = zip(kept, values, strict=True)
            return compute(*(x.compute(*v) if isinstance(x, Deferred) else v[0] for x, v in pairs))[
                0
            ]

        return Deferred(recomputed, tuple(x for own in flat for x in own), avals[index])

    return jax.tree.unflatten(treedef, [leaf(index) for index in each])


def _read_anew(leaves: Sequence[Any], thresholds: Any) -> tuple[list[jax.Array], Any]:
    """The leaves as arrays, computed after `thresholds`: XLA can't hoist them out of a loop."""
    operands = [x.operands if isinstance(x, Deferred) else (x,) for x in leaves]
    operands, thresholds = lax.optimization_barrier((operands, thresholds))
    arrays = [
        x.compute(*own) if isinstance(x, Deferred) else own[0]
        for x, own in zip(leaves, operands, strict=True)
    ]
    return arrays, thresholds


# --- the search ----------------------------------------------------------------------------------

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
        arrays, (steps, keys) = _read_anew(leaves, (strides, keys))
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
