"""Whether params are those that were analyzed, or which part of them.

With batch norm Flax's variables are analyzed, `{"params": ..., "batch_stats": ...}`, and the
optimizer holds the params alone. So a tree may be all that was analyzed, some of its leaves (the
`nnx.Param`s of a state), or one collection of Flax's variables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jaxprune.base import Params
from jaxprune.coupling.structure import Structure
from jaxprune.trees import is_none, named_leaves, quoted


def prefix_of(structure: Structure, names: Iterable[str]) -> str | None:
    """What stands before the names of a tree's leaves in the analyzed tree; None if it has others.

    "" for a tree like the analyzed one, "params/" for the params of Flax's variables.
    """
    names = list(names)
    firsts = dict.fromkeys(path.partition("/")[0] + "/" for path in structure.axes)
    collections = firsts if "params/" in firsts else {}
    ways = (p for p in ("", *collections) if all(p + name in structure.axes for name in names))
    return next(ways, None)


def check_params(what: str, structure: Structure, params: Params) -> str:
    """The prefix of the params (`prefix_of`); leaves may be missing.

    Raises:
      ValueError: for a leaf that was not analyzed, or had another shape.
    """
    shapes = {path: leaf for path, leaf in named_leaves(structure.shapes) if leaf is not None}
    leaves = {path: leaf for path, leaf in named_leaves(params) if leaf is not None}
    prefix = prefix_of(structure, leaves)
    if prefix is None:
        unknown = next(path for path in leaves if path not in shapes)
        raise ValueError(
            f"{what}: there was no '{unknown}' when the function was analyzed; there were "
            f"{quoted(shapes.items())}. analyze(fn, params, ...) these params."
        )
    for path, leaf in leaves.items():
        if np.shape(leaf) != shapes[prefix + path].shape:
            raise ValueError(
                f"{what}: '{path}' has shape {np.shape(leaf)}, and had "
                f"{shapes[prefix + path].shape} when it was analyzed: analyze(fn, params, ...) "
                "these params, and vmap over seeds."
            )
    return prefix


def check_all(what: str, structure: Structure, params: Params) -> None:
    """ValueError unless the params are all that were analyzed, in the shapes that they had."""
    prefix = check_params(what, structure, params)
    leaves = {prefix + path for path, leaf in named_leaves(params) if leaf is not None}
    missing = [(path, None) for path in structure.axes if path not in leaves]
    if missing:
        raise ValueError(
            f"{what}: {quoted(missing)} were analyzed and are not there. Give all that fn takes, "
            "such as Flax's variables with their batch_stats; shrink takes any part of them."
        )


def part_of(structure: Structure, tree: Any, params: Params, what: str) -> Any:
    """Those leaves of `tree`, which is like the analyzed one, that params have; in params' tree."""
    prefix = check_params(what, structure, params)
    leaves = dict(named_leaves(tree))
    own = [None if leaf is None else leaves[prefix + path] for path, leaf in named_leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params, is_leaf=is_none), own)
