"""Really smaller: the params of the kept neurons, and with `replay` the function on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.base import Params, is_none
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.structure import Structure
from jaxprune.rules import named_leaves
from jaxprune.structured.check import check_params
from jaxprune.structured.kept import Kept, known, removed
from jaxprune.structured.replay import replay


class Compact(NamedTuple):
    """A smaller network: `small.fn(small.params, *args)`."""

    params: Params
    fn: Callable[..., Any]


def compact(structure: Structure, params: Params, kept: Kept) -> Compact:
    """The network of the kept neurons only: smaller params, and the function on them.

        small = compact(structure, params, kept)
        small.fn(small.params, x)       # = fn(apply_masks(params, group_masks(structure, kept)), x)

    See `shrink` and `replay`, of which it is made. Of `remove_emptied`, `collapse_emptied` or
    `remove_blocks`, whole layers go: leaves that are not read any more are None.

    Raises:
      ValueError, TypeError: if `kept` or the params do not fit the structure, or are traced.
    """
    return Compact(shrink(structure, params, kept), replay(structure, kept))


def shrink(structure: Structure, tree: Any, kept: Kept) -> Any:
    """`tree` with the kept neurons only, in every part of it that is like the params.

    Args:
      tree: params, gradients, masks, an optimizer's state, averages of weights: what has the paths
        and shapes of the params is made smaller, all else stays.
      kept: bool (size,) by group, True = kept, not traced; or a `Removal`, of which removed leaves
        are None.

    Raises:
      ValueError: if no part of the tree is like the params; it names a leaf that differs.
    """
    keep = Keep({structure.atoms[name]: own for name, own in known(structure, kept).items()})
    wanted: Any = jax.tree.structure(structure.shapes, is_leaf=is_none)
    paths = [path for path, _ in named_leaves(structure.shapes)]
    gone = removed(kept)

    def is_like(part: Any) -> bool:
        return jax.tree.structure(part, is_leaf=is_none) == wanted

    def smaller(part: Any) -> Any:
        if not is_like(part):
            return part
        leaves = jax.tree.leaves(part, is_leaf=is_none)
        pairs = zip(paths, leaves, strict=True)
        return jax.tree.unflatten(wanted, [taken(path, leaf) for path, leaf in pairs])

    def taken(path: str, leaf: Any) -> Any:
        if path in gone:
            return None
        axes = structure.axes.get(path, ())
        full = tuple(len(keep.of(axis)) for axis in axes)
        return keep.take(leaf, axes) if leaf is not None and np.shape(leaf) == full else leaf

    parts, treedef = jax.tree.flatten(tree, is_leaf=is_like)
    if not any(map(is_like, parts)):
        have = [path for path, _ in named_leaves(tree)][:6]
        raise ValueError(
            "shrink: nothing in this tree is like the params that were analysed; they have "
            f"{paths[:6]}, the tree {have}. Analyse the params that you shrink."
        )
    if len(parts) == 1:  # params themselves: all must fit
        check_params("shrink", structure, tree)
    return jax.tree.unflatten(treedef, map(smaller, parts))
