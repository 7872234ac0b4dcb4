"""Really smaller: the params of the kept neurons, and with `replay` the function on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.base import Params
from jaxprune.coupling.structure import Structure
from jaxprune.structured.check import check_all, prefix_of
from jaxprune.structured.kept import KeptLike, check_kept
from jaxprune.structured.replay import replay
from jaxprune.trees import map_named, named_leaves, present_leaves


class Compact(NamedTuple):
    """A smaller network: `small.fn(small.params, *args)`."""

    params: Params
    fn: Callable[..., Any]


def compact(structure: Structure, params: Params, kept: KeptLike) -> Compact:
    """The network of the kept neurons only: smaller params, and the function on them.

        small = compact(structure, params, kept)
        small.fn(small.params, x)       # = fn(apply_masks(params, masks(structure, kept)), x)

    It is made of `shrink` and `replay`. With what `remove_emptied`, `collapse_emptied` or
    `remove_blocks` return, whole layers go: leaves that are not read any more are None.

    Raises:
      ValueError, TypeError: if `kept` or the params do not fit the structure, or are traced; if
        leaves that were analyzed are missing.
    """
    check_all("compact", structure, params)
    kept = check_kept(structure, kept)
    return Compact(shrink(structure, params, kept), replay(structure, kept))


def shrink(structure: Structure, tree: Any, kept: KeptLike) -> Any:
    """`tree` with the kept neurons only, in every part of it that is like the params.

    A part is like the params if all of its leaves have the paths and shapes of leaves that were
    analyzed: all of these, some of them (the `nnx.Param`s of a state, the holes of
    `optax.masked`), or one collection of Flax's variables. So with batch norm, where
    `{"params": ..., "batch_stats": ...}` is analyzed, moments of the params are made smaller too.

    An optimizer that divides by a mean over a leaf (adafactor) counts the zeros of a masked network
    there, and the small network has none: the two train apart.

    Args:
      tree: params, gradients, masks, an optimizer's state, averages of weights, arrays or
        `jax.ShapeDtypeStruct`: parts like the params are made smaller, all else stays.
      kept: bool (size,) by group, True = kept, not traced; or a `Removal`: its removed leaves
        become None.

    Raises:
      ValueError: if no part of the tree is like the params, or one has all of their paths and other
        shapes; it names a leaf that differs.
    """
    left = check_kept(structure, kept)
    shapes = {path: x.shape for path, x in present_leaves(structure.shapes)}
    is_part = False

    def smaller(part: Any) -> Any:
        nonlocal is_part
        leaves = dict(present_leaves(part))
        prefix = prefix_of(structure, leaves) if leaves else None
        if prefix is not None and fits(prefix, leaves):
            is_part = True
            return map_named(lambda path, leaf: taken(prefix + path, leaf), part)
        inner, treedef = jax.tree.flatten(part, is_leaf=lambda node: node is not part)
        if len(inner) == 1 and inner[0] is part:  # a leaf
            return part
        return jax.tree.unflatten(treedef, map(smaller, inner))

    def fits(prefix: str, leaves: dict[str, Any]) -> bool:
        """Whether they have the shapes that were analyzed, or are single numbers."""
        wrong = [
            path
            for path, leaf in leaves.items()
            if np.shape(leaf) != shapes[prefix + path] and np.size(leaf) > 1
        ]
        all_paths = [path for path in shapes if path.startswith(prefix)]
        if wrong and len(leaves) == len(all_paths) and "" not in leaves:
            path = wrong[0]
            raise ValueError(
                f"shrink: a part of the tree has the paths of the params, but '{path}' has shape "
                f"{np.shape(leaves[path])} in it, and had {shapes[prefix + path]} when it was "
                "analyzed. Analyze these params, and vmap over seeds; an optimizer that keeps sums "
                "over axes (adafactor) begins anew: optimizer.init(small.params)."
            )
        return not wrong

    def taken(path: str, leaf: Any) -> Any:
        if path in left.removed:
            return None
        if np.shape(leaf) != shapes[path]:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(left.axes.shape(structure.axes[path]), leaf.dtype)
        return left.axes.take(leaf, structure.axes[path])

    small = smaller(tree)
    if not is_part:
        have = [path for path, _ in named_leaves(tree)][:6]
        raise ValueError(
            "shrink: nothing in this tree is like the params that were analyzed; they have "
            f"{list(shapes)[:6]}, the tree {have}. Analyze the params that you shrink."
        )
    return small
