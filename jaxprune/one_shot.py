"""One-shot pruning in one call: scores, an allocation and a pattern make masks."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.allocation.layerwise import global_threshold
from jaxprune.base import (
    Allocation,
    Masks,
    Pattern,
    Scores,
    Sparsity,
    check_allocation,
    check_pattern,
    check_sparsity,
    is_known,
    is_mask,
    widened,
)
from jaxprune.pattern import OF_MATRIX, ON_MATRICES, unstructured
from jaxprune.prunable.layers import unclear_stacks
from jaxprune.prunable.layout import as_matrix, from_matrix
from jaxprune.prunable.rules import layouts_of, unsaid
from jaxprune.schedules import as_sparsity
from jaxprune.selection.counting import count, left
from jaxprune.selection.deferred import Deferred
from jaxprune.selection.largest import largest
from jaxprune.sharding import automatic
from jaxprune.trees import map_named, present_leaves, quoted


def select(
    scores: Scores,
    allocation: Allocation,
    sparsity: Sparsity,
    pattern: Pattern = unstructured,
) -> Masks:
    """Masks that keep the highest scores: one-shot pruning. Like `scores`, bool, None where None.

    The layers of a stack count one by one where `scores` has them so, as after `kernels(params)`
    and `matching(stacked=...)(params)`. The masks then have layers too; `apply_masks`, `fixed` and
    all other functions take such masks.

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
      UserWarning: if a layer keeps no weight, where that is known (not under `jit`); or if a stack
        of layers counts as one layer.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> w = jnp.array([.5, -.1, .3, -.2, .05, .4, -.35, .15])
    >>> jp.select({'kernel': jnp.abs(w)}, jp.uniform, 0.5)['kernel'].astype(int)
    Array([1, 0, 1, 0, 0, 1, 1, 0], dtype=int32)
    """
    check_allocation(allocation)
    check_pattern(pattern)
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
    for leaf_name, mask in present_leaves(masks):
        if mask.size and _is_known(mask) and not jnp.asarray(mask).any():
            warn_that_empty(leaf_name, stacklevel=3)
    return masks


def _masks(scores: Scores, allocation: Allocation, sparsity: Sparsity, pattern: Pattern) -> Masks:
    leaves, treedef = jax.tree.flatten(scores)
    if pattern is unstructured and allocation is global_threshold:
        # one search finds both how much of each leaf and which entries
        total = sum(x.size for x in leaves)
        masks = largest(leaves, left(sparsity, total), together=True)
        return jax.tree.unflatten(treedef, masks)
    # allocations and other patterns see arrays, not Deferred, and no narrow floats
    tree = jax.tree.map(lambda x: widened(jnp.asarray(x)), scores)
    sparsities = allocation(tree, sparsity)
    if pattern is unstructured:
        # all leaves in one loop: each by itself gives the same masks, and compiles longer
        n_kept = jax.tree.map(lambda x, s: x.size - count(s, x.size), tree, sparsities)
        masks = jax.tree.unflatten(treedef, largest(leaves, jax.tree.leaves(n_kept)))
        for (leaf_name, n), mask in zip(
            present_leaves(n_kept), jax.tree.leaves(masks), strict=True
        ):
            # the count is known while tracing, the mask is not
            if isinstance(n, int) and not n and mask.size and not _is_known(mask):
                warn_that_empty(leaf_name, stacklevel=4)
        return masks

    what = getattr(pattern, ON_MATRICES, None)
    layouts = {} if what is None else layouts_of(what, tree)
    of_matrix = getattr(pattern, OF_MATRIX, pattern)

    def of_leaf(leaf_name: str, leaf: jax.Array, sparsity: Sparsity) -> jax.Array:
        layout = layouts.get(leaf_name)

        def run(leaf: jax.Array, sparsity: Sparsity) -> jax.Array:
            if layout is None:
                return pattern(leaf, sparsity)
            return from_matrix(of_matrix(as_matrix(leaf, layout), sparsity), layout, leaf.shape)

        try:
            mask = automatic(run, leaf)(leaf, sparsity)
        except ValueError as error:
            raise ValueError(f"'{leaf_name}': {error}") from error
        if not is_mask(mask) or mask.shape != leaf.shape:
            raise TypeError(
                f"the pattern must return a bool mask of shape {leaf.shape} for '{leaf_name}'; got "
                f"{getattr(mask, 'dtype', type(mask).__name__)} of shape {np.shape(mask)}."
            )
        return mask

    return map_named(of_leaf, tree, sparsities)


def _is_known(mask: Any) -> bool:
    return is_known(mask.operands if isinstance(mask, Deferred) else mask)


def _check_real(scores: Scores) -> None:
    for leaf_name, leaf in present_leaves(scores):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
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
