"""Patterns: which entries of one leaf are kept. `select`: one-shot pruning in one call.

A pattern is a function `(scores of one leaf, sparsity) -> mask`, bool, True = kept.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.allocation.layerwise import global_threshold, per_layer
from jaxprune.base import (
    Allocation,
    Masks,
    Pattern,
    Scores,
    Sparsity,
    check_sparsity,
    is_count,
    is_known,
    is_mask,
    shown,
    widened,
)
from jaxprune.prunable.layers import unclear_stacks
from jaxprune.prunable.layout import as_matrix, from_matrix
from jaxprune.prunable.rules import layouts_of, unsaid
from jaxprune.schedules import as_sparsity
from jaxprune.selection.counting import count, left
from jaxprune.selection.deferred import Deferred
from jaxprune.selection.largest import largest
from jaxprune.sharding import automatic
from jaxprune.trees import map_named, named_leaves, quoted


def unstructured(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
    """Mask of the largest scores, one by one; `round(sparsity * size)` are False, exactly."""
    return largest([scores], [scores.size - count(sparsity, scores.size)])[0]


def nm(n: int, m: int, axis: int | None = None) -> Pattern:
    """N:M: of every `m` consecutive inputs, the `n` largest entries are kept.

    Inputs are what a product contracts with, as NVIDIA's sparse tensor cores want it: in `select`
    and in transforms `jaxprune.prunable.layout` finds their axes, also of attention's kernels.

    Args:
      n, m: 1 <= n <= m. The sparsity is 1 - n / m, and no other can be asked for.
      axis: another axis of each leaf, as it is: -1 are the outputs of a matrix. None: the inputs;
        -2 where the pattern is called by itself, on (spatial..., inputs, outputs).

    Raises:
      ValueError: (when used) if `m` does not divide the axis, the sparsity is not 1 - n / m, or
        which axes are inputs can't be known.

    Reference: Mishra et al., 2021, Accelerating Sparse Deep Neural Networks.
    """
    if not (isinstance(n, int) and isinstance(m, int) and 1 <= n <= m):
        raise ValueError(f"nm(n, m) keeps n of every m, with 1 <= n <= m; got nm({n}, {m}).")

    along = -2 if axis is None else axis

    def pattern(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
        _check_nm(n, m, along, scores.shape, sparsity)
        last = jnp.moveaxis(jnp.where(jnp.isnan(scores), jnp.inf, scores), along, -1)
        groups = last.reshape(*last.shape[:-1], -1, m)
        place = lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 1)
        rank = jnp.zeros(groups.shape, jnp.int32)
        for j in range(m):  # rank: how many of its group go before an entry
            other = groups[..., j : j + 1]
            before = (other > groups) | ((other == groups) & (j < place))
            rank += before
        return jnp.moveaxis((rank < n).reshape(last.shape), -1, along)

    return _of_matrices(pattern, f"nm({n}, {m})") if axis is None else pattern


def block(h: int, w: int, by: Callable[..., jax.Array] = jnp.max) -> Pattern:
    """Blocks of `h` inputs x `w` outputs are kept or pruned whole, by their largest score.

    `round(sparsity * blocks)` blocks are pruned. Where h or w does not divide its axis, the last
    blocks are smaller. A block of which all scores are -inf, as those of pruned weights are, goes
    first.

    Args:
      h, w: positive integers.
      by: `jnp.max`, as the paper has it, or `jnp.mean`: what scores -inf is zero in a mean.

    Raises:
      ValueError: (when used) if a leaf has one axis, or which axes are inputs can't be known.

    Reference: Narang et al., 2017, Block-Sparse Recurrent Neural Networks.
    """
    if not (isinstance(h, int) and isinstance(w, int) and h >= 1 and w >= 1):
        raise ValueError(f"block(h, w) needs positive integers; got block({h}, {w}).")
    if by not in (jnp.max, jnp.mean):
        raise ValueError(f"block(h, w, by) ranks blocks by jnp.max or jnp.mean; got by={by!r}.")

    def pattern(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
        if scores.ndim < 2:
            raise ValueError(
                f"block({h}, {w}) needs two axes or more; got shape {scores.shape}. "
                "Exclude the leaf with prunable=..."
            )
        *_, rows, columns = scores.shape
        pad = [(0, 0)] * (scores.ndim - 2) + [(0, -rows % h), (0, -columns % w)]

        def blocks(x, value):
            x = jnp.pad(x, pad, constant_values=value)
            return x.reshape(*x.shape[:-2], x.shape[-2] // h, h, x.shape[-1] // w, w)

        worth = blocks(scores, -jnp.inf).max((-3, -1))  # -inf where the block is gone
        if by is jnp.mean:
            total = blocks(jnp.where(jnp.isneginf(scores), 0.0, scores), 0.0).sum((-3, -1))
            mean = total / blocks(jnp.ones_like(scores), 0.0).sum((-3, -1))
            worth = jnp.where(jnp.isneginf(worth), worth, mean)
        kept = _whole(worth, sparsity, scores.size)
        whole = jnp.repeat(jnp.repeat(kept, h, -2), w, -1)[..., :rows, :columns]
        return whole & jnp.ones_like(scores, dtype=bool)  # sharded like them

    return _of_matrices(pattern, f"block({h}, {w})")


def channel(axis: int | None = None) -> Pattern:
    """Output features are kept or pruned whole, by mean score; or slices along another `axis`.

    `round(sparsity * channels)` channels are pruned. A pruned output channel makes the network no
    smaller by itself: its bias, its norm and the next layer's inputs still stand. What scores -inf,
    as pruned weights do, is zero in a mean, and a channel of nothing else goes first.

    Args:
      axis: of each leaf, as it is. None: the outputs, as `jaxprune.prunable.layout` finds them; -1
        where the pattern is called by itself.

    Reference: Li et al., 2017, Pruning Filters for Efficient ConvNets.
    """
    if not (axis is None or isinstance(axis, int)):
        raise ValueError(f"channel(axis) needs an integer; got channel({axis!r}).")
    along = -1 if axis is None else axis

    def pattern(scores: jax.Array, sparsity: Sparsity) -> jax.Array:
        own = _axis(f"channel({along})", along, scores.shape)
        others = tuple(a for a in range(scores.ndim) if a != own)
        mean = jnp.where(jnp.isneginf(scores), 0.0, scores).mean(others)
        is_gone = jnp.isneginf(scores).all(others)
        kept = _whole(jnp.where(is_gone, -jnp.inf, mean), sparsity, scores.size)
        whole = jnp.broadcast_to(jnp.expand_dims(kept, others), scores.shape)
        return whole & jnp.ones_like(scores, dtype=bool)  # sharded like them

    return _of_matrices(pattern, "channel()") if axis is None else pattern


_OF_MATRICES = "of_matrices"


def _of_matrices(pattern: Pattern, what: str) -> Pattern:
    """`pattern`, which `select` is to give each leaf as (spatial..., inputs, outputs)."""
    setattr(pattern, _OF_MATRICES, what)
    return pattern


def select(
    scores: Scores,
    allocation: Allocation,
    sparsity: Sparsity,
    pattern: Pattern = unstructured,
) -> Masks:
    """Masks that keep the highest scores: one-shot pruning. Like `scores`, bool, None where None.

    Layers that are stacked count one by one where `scores` has them so, as those of
    `kernels(params)` and `matching(stacked=...)(params)`; so have the masks, and `apply_masks`,
    `fixed` and all else that takes masks takes them.

    Args:
      scores: pytree of floats, higher = keep; None where a leaf is never pruned.
      allocation: how much of each leaf, such as `uniform`, `erk` or `global_threshold`.
      sparsity: the fraction pruned, in [0, 1); or, as an integer, how many weights, of all leaves
        together. It may be a traced scalar.
      pattern: which entries of a leaf.

    Raises:
      ValueError: if the sparsity is outside [0, 1), nothing is prunable, or the pattern can't mean
        the sparsity that the allocation gives a leaf.
      TypeError: if scores are complex.

    Warns:
      UserWarning: if a layer is left with no weight, where that is known (not under `jit`); or if
        a stack of layers is taken as one.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> w = jnp.array([.5, -.1, .3, -.2, .05, .4, -.35, .15])
    >>> jp.select({'kernel': jnp.abs(w)}, jp.uniform, 0.5)['kernel'].astype(int)
    Array([1, 0, 1, 0, 0, 1, 1, 0], dtype=int32)
    """
    check_callables(allocation, pattern)
    check_sparsity(sparsity, sum(x.size for x in jax.tree.leaves(scores)) or None)
    if not jax.tree.leaves(scores):
        raise ValueError(
            "there is nothing to prune: all scores are None. prunable=kernels chooses leaves of "
            "rank 2 or more that are no bias, norm scale or embedding; name others with "
            "prunable=matching(...)."
        )
    _check_real(scores)
    _warn_of_stacks(scores)
    masks = _masks(scores, allocation, as_sparsity(sparsity), pattern)
    for leaf_name, mask in named_leaves(masks):
        if mask is not None and mask.size and _is_known(mask) and not jnp.asarray(mask).any():
            warn_that_empty(leaf_name, stacklevel=3)
    return masks


def _masks(scores: Scores, allocation: Allocation, sparsity: Sparsity, pattern: Pattern) -> Masks:
    leaves, treedef = jax.tree.flatten(scores)
    if pattern is unstructured and allocation is global_threshold:
        # one search finds both how much of each leaf and which entries
        total = sum(x.size for x in leaves)
        masks = largest(leaves, left(sparsity, total), together=True)
        return jax.tree.unflatten(treedef, masks)
    # no one else needs to know of Deferred leaves, nor of narrow floats
    tree = jax.tree.map(lambda x: widened(jnp.asarray(x)), scores)
    sparsities = allocation(tree, sparsity)
    if pattern is unstructured:
        # all leaves in one loop: each by itself gives the same masks, and compiles longer
        kept = jax.tree.map(lambda x, own: x.size - count(own, x.size), tree, sparsities)
        masks = jax.tree.unflatten(treedef, largest(leaves, jax.tree.leaves(kept)))
        for (leaf_name, n), (_, own) in zip(named_leaves(kept), named_leaves(masks), strict=True):
            if isinstance(n, int) and not n and own.size and not _is_known(own):
                warn_that_empty(
                    leaf_name, stacklevel=4
                )  # the count is known while tracing, the mask is not
        return masks

    what = getattr(pattern, _OF_MATRICES, None)
    layouts = {} if what is None else layouts_of(what, tree)

    def mask(leaf_name: str, leaf: jax.Array, own: Sparsity) -> jax.Array:
        layout = layouts.get(leaf_name)

        def run(leaf: jax.Array, own: Sparsity) -> jax.Array:
            if layout is None:
                return pattern(leaf, own)
            return from_matrix(pattern(as_matrix(leaf, layout), own), layout, leaf.shape)

        try:
            kept = automatic(run, leaf)(leaf, own)
        except ValueError as error:
            raise ValueError(f"'{leaf_name}': {error}") from error
        _check_mask(leaf_name, leaf, kept)
        return kept

    return map_named(mask, tree, sparsities)


def check_callables(allocation: Any, pattern: Any) -> None:
    """TypeError unless these are an allocation and a pattern, and not what makes one."""
    if not callable(allocation) or allocation is per_layer:
        raise TypeError(
            "allocation is a function (scores, sparsity) -> sparsities, such as jp.erk or "
            f"jp.global_threshold; got {shown(allocation)}."
        )
    if not callable(pattern) or pattern in (nm, block, channel):
        raise TypeError(
            "pattern is a function (scores, sparsity) -> mask of one leaf, such as "
            f"jp.unstructured, jp.nm(2, 4), jp.block(4, 4) or jp.channel(-1); got {shown(pattern)}."
        )


def _is_known(mask: Any) -> bool:
    return is_known(mask.operands if isinstance(mask, Deferred) else mask)


def _check_mask(leaf_name: str, leaf: jax.Array, mask: Any) -> None:
    if not is_mask(mask) or mask.shape != leaf.shape:
        raise TypeError(
            f"the pattern must return a bool mask of shape {leaf.shape} for '{leaf_name}'; got "
            f"{getattr(mask, 'dtype', type(mask).__name__)} of shape {np.shape(mask)}."
        )


def _check_real(scores: Scores) -> None:
    for leaf_name, leaf in named_leaves(scores):
        if leaf is not None and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(
                f"scores are real numbers, higher = keep; those of '{leaf_name}' are {leaf.dtype}. "
                "Rank complex weights by their size, as magnitude does."
            )


def _warn_of_stacks(scores: Scores) -> None:
    shapes = {leaf_name: leaf.shape for leaf_name, leaf in unsaid(scores)}
    stacks = [(leaf_name, None) for leaf_name in unclear_stacks(shapes)]
    if stacks:
        warnings.warn(
            f"each of {quoted(stacks, most=4)} looks like a stack of layers, and counts as one. "
            "Score what kernels chooses, as in magnitude(kernels(params)), or say which axis is "
            "stacked: matching(stacked={'layers/*': 0}).",
            stacklevel=3,
        )


def warn_that_empty(leaf_name: str, stacklevel: int) -> None:
    """UserWarning: a layer keeps nothing."""
    warnings.warn(
        f"'{leaf_name}' keeps none of its weights: its layer is dead. Lower the sparsity, exempt "
        "it with per_layer or prunable=..., or use lamp scores.",
        stacklevel=stacklevel,
    )


def _axis(what: str, axis: int, shape: tuple[int, ...]) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"{what} has no such axis in shape {shape}. Exclude the leaf with prunable=..., or "
            "choose another axis."
        )
    return axis % len(shape)


def _check_nm(n: int, m: int, axis: int, shape: tuple[int, ...], sparsity: Sparsity) -> None:
    own = _axis(f"nm({n}, {m}, axis={axis})", axis, shape)
    if shape[own] % m:
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
    if is_count(sparsity):
        asked = int(sparsity) / math.prod(shape)
    else:
        asked = float(sparsity)
    if abs(asked - (1 - n / m)) > 1e-6:
        raise ValueError(
            f"{meaning}; got sparsity {asked:g}. Use uniform and sparsity={1 - n / m:g}, or "
            "another pattern."
        )


def _whole(group_scores: jax.Array, sparsity: Sparsity, size: int) -> jax.Array:
    """Mask of the groups to keep: `sparsity` of them pruned, whether a fraction or a number of
    the leaf's `size` entries.
    """
    groups = group_scores.size
    if isinstance(sparsity, (int, np.integer)):
        pruned: Any = round(int(sparsity) * groups / size)
    elif isinstance(sparsity, jax.Array) and jnp.issubdtype(sparsity.dtype, jnp.integer):
        pruned = jnp.round(sparsity.astype(jnp.float32) * (groups / size)).astype(jnp.int32)
    else:
        pruned = count(sparsity, groups)
    return largest([group_scores], [groups - pruned])[0]
