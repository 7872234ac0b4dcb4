"""Really smaller: the params of the kept neurons, and with `replay` the function on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.base import Params
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.structure import Structure
from jaxprune.structured.check import check_all, prefix_of
from jaxprune.structured.kept import Kept, known, removed
from jaxprune.structured.replay import replay
from jaxprune.trees import is_none, named_leaves


class Compact(NamedTuple):
    """A smaller network: `small.fn(small.params, *args)`."""

    params: Params
    fn: Callable[..., Any]


def compact(structure: Structure, params: Params, kept: Kept) -> Compact:
    """The network of the kept neurons only: smaller params, and the function on them.

        small = compact(structure, params, kept)
        small.fn(small.params, x)       # = fn(apply_masks(params, masks(structure, kept)), x)

    See `shrink` and `replay`, of which it is made. Of `remove_emptied`, `collapse_emptied` or
    `remove_blocks`, whole layers go: leaves that are not read any more are None.

    Raises:
      ValueError, TypeError: if `kept` or the params do not fit the structure, or are traced; if
        leaves that were analyzed are missing.
    """
    check_all("compact", structure, params)
    return Compact(shrink(structure, params, kept), replay(structure, kept))


def shrink(structure: Structure, tree: Any, kept: Kept) -> Any:
    """`tree` with the kept neurons only, in every part of it that is like the params.

    A part is like the params if all of its leaves have the paths and shapes of leaves that were
    analyzed: all of these, some of them (the `nnx.Param`s of a state, the holes of
    `optax.masked`), or one collection of Flax's variables. So with batch norm, where
    `{"params": ..., "batch_stats": ...}` is analyzed, moments of the params are made smaller too.

    An optimizer that divides by a mean over a leaf (adafactor) counts the zeros of a masked network
    there, and has none in the small one: with it the two train apart.

    Args:
      tree: params, gradients, masks, an optimizer's state, averages of weights, arrays or
        `jax.ShapeDtypeStruct`: parts like the params are made smaller, all else stays.
      kept: bool (size,) by group, True = kept, not traced; or a `Removal`, of which removed leaves
        are None.

    Raises:
      ValueError: if no part of the tree is like the params, or one has all of their paths and other
        shapes; it names a leaf that differs.
    """
    keep = Keep({structure.atoms[name]: own for name, own in known(structure, kept).items()})
    shapes = {path: x.shape for path, x in named_leaves(structure.shapes) if x is not None}
    gone = removed(kept)
    found: list[str] = []

    def smaller(part: Any) -> Any:
        own = {path: leaf for path, leaf in named_leaves(part) if leaf is not None}
        prefix = prefix_of(structure, own) if own else None
        if prefix is not None and fits(prefix, own):
            found.append(prefix)
            treedef = jax.tree.structure(part, is_leaf=is_none)
            leaves = [taken(prefix + path, leaf) for path, leaf in named_leaves(part)]
            return jax.tree.unflatten(treedef, leaves)
        inner, treedef = jax.tree.flatten(part, is_leaf=lambda node: node is not part)
        if len(inner) == 1 and inner[0] is part:  # a leaf
            return part
        return jax.tree.unflatten(treedef, map(smaller, inner))

    def fits(prefix: str, own: dict[str, Any]) -> bool:
        """Whether they have the shapes that were analyzed, or are single numbers."""
        wrong = [
            path
            for path, leaf in own.items()
            if np.shape(leaf) != shapes[prefix + path] and np.size(leaf) > 1
        ]
        every = [path for path in shapes if path.startswith(prefix)]
        if wrong and len(own) == len(every) and "" not in own:
            path = wrong[0]
            raise ValueError(
                f"shrink: a part of the tree has the paths of the params, but '{path}' has shape "
                f"{np.shape(own[path])} in it, and had {shapes[prefix + path]} when it was "
                "analyzed. Analyze these params, and vmap over seeds; an optimizer that keeps sums "
                "over axes (adafactor) begins anew: optimizer.init(small.params)."
            )
        return not wrong

    def taken(path: str, leaf: Any) -> Any:
        if path in gone or leaf is None:
            return None
        axes = structure.axes[path]
        if np.shape(leaf) != shapes[path]:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(keep.shape(axes), leaf.dtype)
        return keep.take(leaf, axes)

    result = smaller(tree)
    if not found:
        have = [path for path, _ in named_leaves(tree)][:6]
        raise ValueError(
            "shrink: nothing in this tree is like the params that were analyzed; they have "
            f"{list(shapes)[:6]}, the tree {have}. Analyze the params that you shrink."
        )
    return result
