"""Patterns: which entries of one leaf are kept.

A pattern is a function `(scores of one leaf, sparsity) -> mask`, bool, True = kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Pattern, Sparsity, call_first, is_count, is_known
from jaxprune.selection.counting import count
from jaxprune.selection.largest import largest
from jaxprune.selection.transposable import transposable as _transposable


def unstructured(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
    """Mask of the largest scores, one by one; `round(sparsity * size)` are False, exactly."""
    return largest([scores], [scores.size - count(sparsity, scores.size)])[0]


@call_first("jp.nm(2, 4)")
def nm(n: int, m: int, axis: int | None = None, transposable: bool = False) -> Pattern:
    """N:M: of every `m` consecutive inputs, the `n` largest entries are kept.

    Inputs are the axis that a product contracts with: NVIDIA's sparse tensor cores need groups
    along it. `select` and transforms find it (`jaxprune.prunable.layout`), also for attention.

    Args:
      n, m: 1 <= n <= m. The sparsity is 1 - n / m; there is no other.
      axis: another axis of each leaf as it is; -1 is the outputs of a matrix. None: the inputs,
        or -2 where you call the pattern yourself, on a matrix or a convolution's kernel.
      transposable: whether of every `m` consecutive outputs `n` are kept too, so that the product
        of the backward pass is N:M as well (Hubara et al., 2021, Accelerated Sparse Neural
        Training). The sum of the scores in each block of m x m is the largest up to m = 4;
        above, greedy.

    Raises:
      ValueError: for an axis and `transposable`; (when used) if `m` does not divide the axis, the
        sparsity is not 1 - n / m, or the axes of the inputs can't be known: of an array of three
        axes that you give to the pattern yourself, -2 may be the heads of attention.

    Reference: Mishra et al., 2021, Accelerating Sparse Deep Neural Networks.
    """
    if not (isinstance(n, int) and isinstance(m, int) and 1 <= n <= m):
        raise ValueError(f"nm(n, m) keeps n of every m, with 1 <= n <= m; got nm({n}, {m}).")

    if not isinstance(transposable, bool):
        raise ValueError(f"nm: transposable is True or False; got {transposable!r}.")
    if transposable and axis is not None:
        raise ValueError(
            f"nm({n}, {m}, transposable=True) groups along inputs and outputs; leave out "
            f"axis={axis}."
        )
    along = -2 if axis is None else axis

    def pattern(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
        _check_nm(n, m, along, scores.shape, sparsity)
        if transposable:
            _check_nm(n, m, -1, scores.shape, sparsity)
            return _transposable(scores, n, m)
        return rank_in_group(scores, m, along) < n

    def where_inputs_are_known(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
        if scores.ndim == 3:
            raise ValueError(
                f"nm({n}, {m}) groups along the inputs, and an array of shape {scores.shape} may "
                f"have heads or a window. Name the axis: nm({n}, {m}, axis=0) for query, key and "
                "value of attention, axis=-2 for a convolution; or call select, which knows them "
                "by the name of the leaf or asks."
            )
        return pattern(scores, sparsity)

    if axis is not None:
        return pattern
    setattr(where_inputs_are_known, OF_MATRIX, pattern)
    return _on_matrices(where_inputs_are_known, f"nm({n}, {m})")


def rank_in_group(scores: jax.Array, m: int, axis: int) -> jax.Array:
    """How many of its group of `m` along the axis go before an entry, int32; NaN is the largest."""
    last = jnp.moveaxis(jnp.where(jnp.isnan(scores), jnp.inf, scores), axis, -1)
    groups = last.reshape(*last.shape[:-1], -1, m)
    place = lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 1)
    rank = jnp.zeros(groups.shape, jnp.int32)
    for j in range(m):
        other = groups[..., j : j + 1]
        rank += (other > groups) | ((other == groups) & (j < place))
    return jnp.moveaxis(rank.reshape(last.shape), -1, axis)


@call_first("jp.block(4, 4)")
def block(
    h: int, w: int, by: Callable[..., jax.Array] = jnp.max, balanced: bool = False
) -> Pattern:
    """Blocks of `h` inputs x `w` outputs are kept or pruned together, by their largest score.

    `round(sparsity * blocks)` blocks are pruned. Where h or w does not divide its axis, the last
    blocks are smaller. A block whose scores are all -inf, as those of pruned weights are, goes
    first.

    Args:
      h, w: positive integers.
      by: `jnp.max`, as in the paper, or `jnp.mean`: a score of -inf is zero in a mean.
      balanced: whether each block of outputs keeps the same number of blocks; the sparsity is
        rounded for each. Such masks make products faster (`jaxprune.fast`).

    Raises:
      ValueError: (when used) if a leaf has one axis, or its inputs and outputs can't be known.

    Reference: Narang et al., 2017, Block-Sparse Recurrent Neural Networks.
    """
    if not (isinstance(h, int) and isinstance(w, int) and h >= 1 and w >= 1):
        raise ValueError(f"block(h, w) needs positive integers; got block({h}, {w}).")
    if by not in (jnp.max, jnp.mean):
        raise ValueError(f"block(h, w, by) ranks blocks by jnp.max or jnp.mean; got by={by!r}.")

    if not isinstance(balanced, bool):
        raise ValueError(f"block(h, w, balanced) is True or False; got balanced={balanced!r}.")

    def pattern(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
        if scores.ndim < 2:
            raise ValueError(
                f"block({h}, {w}) needs two axes or more; got shape {scores.shape}. "
                "Exclude the leaf with prunable=..."
            )
        *_, rows, columns = scores.shape
        pad = [(0, 0)] * (scores.ndim - 2) + [(0, -rows % h), (0, -columns % w)]

        def blocks(x: jax.Array, value: float) -> jax.Array:
            x = jnp.pad(x, pad, constant_values=value)
            return x.reshape(*x.shape[:-2], x.shape[-2] // h, h, x.shape[-1] // w, w)

        worth = blocks(scores, -jnp.inf).max((-3, -1))  # -inf where all of the block is pruned
        if by is jnp.mean:
            total = blocks(jnp.where(jnp.isneginf(scores), 0.0, scores), 0.0).sum((-3, -1))
            mean = total / blocks(jnp.ones_like(scores), 0.0).sum((-3, -1))
            worth = jnp.where(jnp.isneginf(worth), worth, mean)
        if balanced:
            of_outputs = lambda worth: _of_groups(worth, sparsity, scores.size)
            mask = jax.vmap(of_outputs, -1, -1)(worth)
        else:
            mask = _of_groups(worth, sparsity, scores.size)
        mask = jnp.repeat(jnp.repeat(mask, h, -2), w, -1)[..., :rows, :columns]
        return mask & jnp.ones_like(scores, dtype=bool)  # sharded like them

    return _on_matrices(pattern, f"block({h}, {w})")


@call_first("jp.channel(-1)")
def channel(axis: int | None = None) -> Pattern:
    """Output features are kept or pruned together, by mean score; or slices along another `axis`.

    `round(sparsity * channels)` channels are pruned. A pruned output channel does not make the
    network smaller by itself: its bias, its norm and the inputs of the next layer stay. A score of
    -inf, as those of pruned weights, is zero in a mean; a channel of only such scores goes first.

    Args:
      axis: of each leaf as it is. None: the outputs (`jaxprune.prunable.layout`), or -1 where you
        call the pattern yourself.

    Reference: Li et al., 2017, Pruning Filters for Efficient ConvNets.
    """
    if not (axis is None or isinstance(axis, int)):
        raise ValueError(f"channel(axis) needs an integer; got channel({axis!r}).")
    along = -1 if axis is None else axis

    def pattern(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
        place = _axis(f"channel({along})", along, scores.shape)
        others = tuple(a for a in range(scores.ndim) if a != place)
        mean = jnp.where(jnp.isneginf(scores), 0.0, scores).mean(others)
        is_pruned = jnp.isneginf(scores).all(others)
        mask = _of_groups(jnp.where(is_pruned, -jnp.inf, mean), sparsity, scores.size)
        mask = jnp.broadcast_to(jnp.expand_dims(mask, others), scores.shape)
        return mask & jnp.ones_like(scores, dtype=bool)  # sharded like them

    return _on_matrices(pattern, "channel()") if axis is None else pattern


ON_MATRICES = "on_matrices"
OF_MATRIX = "of_matrix"  # the pattern without the question which axes are inputs


def _on_matrices(pattern: Pattern, what: str) -> Pattern:
    """Marks a pattern: `select` calls it on leaves as (spatial..., inputs, outputs)."""
    setattr(pattern, ON_MATRICES, what)
    return pattern


def _axis(what: str, axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"{what} has no such axis in shape {shape}. Exclude the leaf with prunable=..., or "
            "choose another axis."
        )
    return axis % len(shape)


def _check_nm(n: int, m: int, axis: int, shape: tuple[int, ...], sparsity: Sparsity) -> None:
    if shape[_axis(f"nm({n}, {m}, axis={axis})", axis, shape)] % m:
        raise ValueError(
            f"nm({n}, {m}) needs axis {axis} divisible by {m}; got shape {shape}. "
            "Exclude the leaf with prunable=..., or choose another axis."
        )
    meaning = f"nm({n}, {m}) prunes exactly {1 - n / m:g} of every leaf"
    if not is_known(sparsity):
        raise ValueError(
            f"{meaning}; got a sparsity that is traced (a schedule, global_threshold, or an "
            f"argument of jit). Use uniform and sparsity={1 - n / m:g}; every(..., start=...) "
            "says when."
        )
    fraction = int(sparsity) / math.prod(shape) if is_count(sparsity) else float(sparsity)
    if abs(fraction - (1 - n / m)) > 1e-6:
        raise ValueError(
            f"{meaning}; got sparsity {fraction:g}. Use uniform and sparsity={1 - n / m:g}, or "
            "another pattern."
        )


def _of_groups(group_scores: jax.Array, sparsity: Sparsity, size: int) -> jax.Array:
    """Mask of the groups to keep.

    Args:
      sparsity: of the groups, a fraction; or how many of the leaf's `size` weights are pruned.
    """
    groups = group_scores.size
    if isinstance(sparsity, (int, np.integer)):
        pruned: Any = round(int(sparsity) * groups / size)
    elif isinstance(sparsity, jax.Array) and jnp.issubdtype(sparsity.dtype, jnp.integer):
        pruned = jnp.round(sparsity.astype(jnp.float32) * (groups / size)).astype(jnp.int32)
    else:
        pruned = count(sparsity, groups)
    return largest([group_scores], [groups - pruned])[0]
