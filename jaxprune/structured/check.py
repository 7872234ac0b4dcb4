"""Trees beside what was analyzed: which part of it they are, and what each neuron has of them.

With batch norm Flax's variables are analyzed, `{"params": ..., "batch_stats": ...}`, and the
optimizer holds the params alone. So a tree may be all that was analyzed, some of its leaves (the
`nnx.Param`s of a state), or one collection of Flax's variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.coupling.expressions import places
from jaxprune.coupling.structure import Member, Structure
from jaxprune.trees import map_named, named_leaves, present_leaves, quoted


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
    shapes, leaves = dict(present_leaves(structure.shapes)), dict(present_leaves(params))
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


def check_all(what: str, structure: Structure, params: Params) -> str:
    """As `check_params`, and ValueError unless the params are all that were analyzed."""
    prefix = check_params(what, structure, params)
    leaves = {prefix + path for path, _ in present_leaves(params)}
    missing = [(path, None) for path in structure.axes if path not in leaves]
    if missing:
        raise ValueError(
            f"{what}: {quoted(missing)} were analyzed and are not there. Give all that fn takes, "
            "such as Flax's variables with their batch_stats; shrink takes any part of them."
        )
    return prefix


def part_of(structure: Structure, tree: Any, params: Params, what: str) -> Any:
    """The leaves of `tree`, which is like the analyzed one, that params have; in params' tree."""
    prefix = check_params(what, structure, params)
    leaves = dict(named_leaves(tree))
    return map_named(lambda path, _: leaves[prefix + path], params)


def slices(structure: Structure, group: str, leaves: Mapping[str, Any]) -> dict[Member, Any]:
    """(size, entries) by member: the entries of each neuron of a group, a neuron a row.

    Where an axis has each neuron several times (flattened, or in each of several heads), all of
    its entries are in its row.

    Args:
      leaves: arrays by path, numpy or jax, like the params; members whose leaf is missing or None
        are left out.
    """
    rows = {}
    for member in structure.groups[group].members:
        leaf = leaves.get(member.path)
        if leaf is not None:
            xp: Any = np if isinstance(leaf, np.ndarray) else jnp
            first = xp.moveaxis(leaf, member.axis, 0)
            axis = structure.axes[member.path][member.axis]
            each = [_rows(first, where) for where in places(axis, structure.atoms[group])]
            rows[member] = each[0] if len(each) == 1 else xp.concatenate(each, 1)
    return rows


def _rows(x: Any, where: np.ndarray) -> Any:
    """`x` with one row for each number in `where` (the neuron of each entry, or -1), in order."""
    order = np.argsort(where, kind="stable")[(where < 0).sum() :]
    if not np.array_equal(order, np.arange(len(x))):
        x = x[order]
    return x.reshape(where.max() + 1, -1)
