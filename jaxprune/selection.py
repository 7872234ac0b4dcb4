"""The k-th largest of a pytree, without sorting: exact counts, ties to the lower index.

Floats are mapped to integers that order alike, and the k-th largest is found by closing a bracket
of integers: one pass over the leaves where they lie compares every entry with seven thresholds
and counts, so three bits a pass and at most eleven passes. It needs no concatenation across
leaves, vmaps, and under sharding its only communication is the sum of seven counts.

A pass is one *variadic* reduction: XLA's CPU backend runs a reduction of two or more operands
about ten times faster than one of a single operand (jax 0.10.2), so seven counts cost less than
one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters import partial_eval

WAYS = 8  # a pass cuts the bracket into this many parts
_GRID = 10_000_000  # traced sparsities are read as decimals of seven digits


# --- counts ----------------------------------------------------------------------------------


def count(sparsity: Any, size: int) -> Any:
    """`round(sparsity * size)`, half to even: how many of `size` are pruned, int.

    A Python float gives a Python int; an array gives an int32 array. Float32 can't hold 0.9, and
    `0.9 * 25_557_032` in float32 is wrong: an array is read as the decimal of seven digits next
    to it, and multiplied in integers. An integer is already a count and comes back unchanged.
    """
    if isinstance(sparsity, int):
        return min(sparsity, size)
    if not isinstance(sparsity, jax.Array):
        # ten digits first: 0.145 * 100 is 14.499999999999998 in binary
        return round(round(float(sparsity) * size, 10 - len(str(size))))
    if jnp.issubdtype(sparsity.dtype, jnp.integer):
        return jnp.minimum(sparsity.astype(jnp.int32), size)
    decimal = jnp.round(sparsity.astype(jnp.float32) * _GRID).astype(jnp.int32)
    return _rounded_quotient(decimal, size)


def _rounded_quotient(decimal: jax.Array, size: int) -> jax.Array:
    """`round(decimal * size / 10**7)`, half to even, in int32; decimal <= 10**7, size < 2**31."""
    whole, rest = divmod(size, _GRID)
    # schoolbook multiplication of decimal and rest in base 10**4: no product reaches 2**31
    high, low = decimal // 10_000, decimal % 10_000
    rest_high, rest_low = divmod(rest, 10_000)
    middle = high * rest_low + low * rest_high
    remainder = (middle % 1_000) * 10_000 + low * rest_low + _GRID // 2
    quotient = decimal * whole + 10 * high * rest_high + middle // 1_000 + remainder // _GRID
    tie_to_odd = (remainder % _GRID == 0) & (quotient % 2 == 1)
    return quotient - tie_to_odd.astype(jnp.int32)


# --- scores that are never written ----------------------------------------------------------------


class Deferred:
    """An array that is recomputed wherever it is read, so that no copy of it is ever stored.

    Behaves as an array in `jnp` functions; `shape`, `dtype`, `size` and `ndim` are known.
    """

    def __init__(self, compute: Callable[..., jax.Array], operands: tuple, aval: Any):
        self.compute, self.operands = compute, operands
        self.shape, self.dtype = aval.shape, aval.dtype
        self.size, self.ndim = math.prod(aval.shape), len(aval.shape)

    def __jax_array__(self) -> jax.Array:
        return self.compute(*self.operands)


# Recomputing these in each of eleven passes is cheaper than one write of their result.
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
    more to it (a sort, a sum, random bits) the leaf is an ordinary array.
    """
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    computed = jax.tree.leaves(f(*args))  # what is not read of it, the compiler leaves out
    avals, treedef = jax.tree.flatten(shapes)
    operands = jax.tree.leaves(args)

    def leaf(index: int) -> Any:
        wanted = [i == index for i in range(len(avals))]
        own, used = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
        if not _is_elementwise(own):
            return computed[index]
        compute = jaxpr_as_fun(ClosedJaxpr(own, closed.consts))
        kept = tuple(x for x, is_used in zip(operands, used, strict=True) if is_used)
        return Deferred(lambda *xs: compute(*xs)[0], kept, avals[index])

    return jax.tree.unflatten(treedef, [leaf(i) for i in range(len(avals))])


def reads_deferred(f: Callable) -> Callable:
    """Marks a function of scores that takes `Deferred` leaves; all others are given arrays."""
    f.reads_deferred = True  # type: ignore[attr-defined]
    return f


def readable_by(f: Callable, scores: Any) -> Any:
    """`scores`, with `Deferred` leaves only if `f` is marked to take them."""
    if getattr(f, "reads_deferred", False):
        return scores
    return jax.tree.map(jnp.asarray, scores)


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


def _value(key: jax.Array) -> jax.Array:
    """The float32 of rank `key`: uint32 keys order like the floats they stand for."""
    bits = jnp.where(key >> 31, key ^ jnp.uint32(1 << 31), ~key)
    return lax.bitcast_convert_type(bits, jnp.float32)


_LOWEST = 0x007FFFFF  # the key of -inf
_ABOVE_ALL = 0xFF800001  # the key after that of +inf


def _real(x: jax.Array) -> jax.Array:
    """`x` in float32; nan becomes +inf, so that it is kept and seen, and every count is exact."""
    x = x.astype(jnp.float32)
    return jnp.where(jnp.isnan(x), jnp.inf, x)


def _sums(flags: Sequence[jax.Array]) -> jax.Array:
    """How many are True in each of `flags` (same shape), int32, in one pass over memory."""
    zeros = (jnp.int32(0),) * len(flags)
    add = lambda xs, ys: tuple(x + y for x, y in zip(xs, ys, strict=True))
    ints = tuple(flag.astype(jnp.int32) for flag in flags)
    return jnp.stack(lax.reduce(ints, zeros, add, tuple(range(flags[0].ndim))))


def _counts(leaves: Sequence[Any], keys: jax.Array) -> jax.Array:
    """How many entries of each leaf are at or above each key's value: int32 (leaves, keys)."""
    arrays, keys = _read_anew(leaves, keys)
    values = _value(keys)
    return jnp.stack([_sums([_real(x) >= value for value in values]) for x in arrays])


def _close(at_least: Callable, k: Any, bottom: int, top: int, everything: Any) -> tuple:
    """Closes a bracket around the k-th largest of uint32 values, 1 <= k <= everything.

    Args:
      at_least: thresholds (WAYS - 1,) uint32 -> how many values are at or above each, int32.
      k: the rank that is sought, int32.
      bottom, top: every value is at least `bottom` and below `top`.
      everything: how many values there are, int32.

    Returns:
      `(low, n_low, n_high)`: `n_low >= k` values are at least `low`, and `n_high < k` are above
      it; or `n_low == k`, and `low` separates the k largest from the others.
    """

    def cut(state):
        low, high, n_low, n_high = state
        span, parts = high - low, jnp.arange(1, WAYS, dtype=jnp.uint32)
        # low + span * parts / WAYS, rounded up but below high, without leaving 32 bits
        steps = (span // WAYS) * parts + ((span % WAYS) * parts + WAYS - 1) // WAYS
        thresholds = low + jnp.minimum(steps, span - 1)
        n = at_least(thresholds)
        enough = n >= k
        low = jnp.max(jnp.where(enough, thresholds, low))
        high = jnp.min(jnp.where(enough, high, thresholds))
        n_low = jnp.min(jnp.where(enough, n, n_low))
        n_high = jnp.max(jnp.where(enough, n_high, n))
        return low, high, n_low, n_high

    def is_open(state):
        low, high, n_low, _ = state
        return (n_low != k) & (high - low > 1)

    first = (jnp.uint32(bottom), jnp.uint32(top), jnp.asarray(everything, jnp.int32), jnp.int32(0))
    low, _, n_low, n_high = lax.while_loop(is_open, cut, first)
    return low, n_low, n_high


def _strides(shape: tuple[int, ...]) -> list[jax.Array]:
    return [jnp.uint32(math.prod(shape[axis + 1 :])) for axis in range(len(shape))]


def _flat_index(shape: tuple[int, ...], strides: Sequence[jax.Array]) -> jax.Array:
    """Each entry's index in the flattened array, uint32, made where it lies."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return index


def _is_largest(x: Any, k: Any) -> jax.Array:
    """See `is_largest`; also takes a `Deferred`, whose values are then never written."""
    if x.size == 0:
        return jnp.zeros(x.shape, bool)
    k = jnp.asarray(k, jnp.int32)
    rank = jnp.maximum(k, 1)
    key, n_low, n_high = _close(
        lambda keys: _counts([x], keys)[0], rank, _LOWEST, _ABOVE_ALL, x.size
    )
    threshold, strides = _value(key), _strides(x.shape)
    # If the rank falls among equals, keep as many of those as are wanted, from the front.
    separated, equals = n_low == rank, n_low - n_high
    wanted = jnp.where(separated, equals, rank - n_high)

    def equals_before(bounds):
        # the strides too are read anew, or XLA would write the index of every entry to memory
        (values,), (limits, own) = _read_anew([x], (x.size - bounds, strides))
        tied, index = _real(values) == threshold, _flat_index(x.shape, own)
        return _sums([tied & (index <= limit) for limit in limits])

    back, _, _ = _close(equals_before, wanted, 0, x.size + 1, equals)
    values = _real(jnp.asarray(x))
    among = separated | (_flat_index(x.shape, strides) <= jnp.uint32(x.size) - back)
    return ((values > threshold) | ((values == threshold) & among)) & (k > 0)


def _numbers_largest(leaves: Sequence[Any], k: Any) -> list[jax.Array]:
    """See `numbers_largest`; also takes `Deferred` leaves, whose values are then never written."""
    k, total = jnp.asarray(k, jnp.int32), sum(x.size for x in leaves)
    rank = jnp.maximum(k, 1)
    at_least = lambda keys: _counts(leaves, keys).sum(0)
    key, n_low, _ = _close(at_least, rank, _LOWEST, _ABOVE_ALL, total)
    # one more pass, leaf by leaf: at or above the k-th largest, and above it
    n_equal_or_above, n_above = _counts(leaves, key + jnp.arange(2, dtype=jnp.uint32)).T
    n_above = jnp.where(n_low == rank, n_equal_or_above, n_above)
    equals, left = n_equal_or_above - n_above, rank - n_above.sum()
    earlier = jnp.cumsum(equals) - equals
    n = n_above + jnp.clip(left - earlier, 0, equals)
    return list(jnp.where(k > 0, n, 0))


@functools.partial(jax.jit, static_argnames=())
def _is_largest_array(x: jax.Array, k: jax.Array) -> jax.Array:
    return _is_largest(x, k)


@jax.jit
def _numbers_largest_arrays(leaves: list[jax.Array], k: jax.Array) -> list[jax.Array]:
    return _numbers_largest(leaves, k)


def is_largest(x: Any, k: Any) -> jax.Array:
    """Mask of the `k` largest entries of `x`: bool, the shape of `x`, exactly `k` True.

    Args:
      x: scores, any real dtype, ranked as float32. Among equals the lower flat index is kept.
      k: int or int32 scalar, 0 <= k <= x.size; may be traced.
    """
    return _is_largest(x, k) if isinstance(x, Deferred) else _is_largest_array(x, k)


def numbers_largest(leaves: Sequence[Any], k: Any) -> list[jax.Array]:
    """How many of the `k` largest entries of all `leaves` together lie in each: int32 scalars.

    Among equals the earlier leaf counts first. The numbers sum to `k` exactly.

    Raises:
      ValueError: if the leaves hold 2**31 entries or more, which int32 can't count.
    """
    leaves = list(leaves)
    total = sum(x.size for x in leaves)
    if total >= 2**31:
        raise ValueError(
            f"a global ranking counts in int32, below 2**31 weights; got {total:,}. "
            "Use a layer-wise allocation such as erk or uniform, or a narrower prunable=..."
        )
    if not total:
        return [jnp.int32(0) for _ in leaves]
    if any(isinstance(x, Deferred) for x in leaves):
        return _numbers_largest(leaves, k)
    return _numbers_largest_arrays(leaves, k)
