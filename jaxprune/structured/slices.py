"""What each neuron of a group has of the params: one row a neuron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.coupling.expressions import places
from jaxprune.coupling.structure import Member, Structure


def slices(structure: Structure, name: str, leaves: Mapping[str, Any]) -> dict[Member, Any]:
    """(size, entries) by member: the entries of each neuron of a group, a neuron a row.

    Where an axis has each neuron several times (flattened, or in each of several heads), all of
    its entries are in its row.

    Args:
      leaves: arrays by path, numpy or jax, like the params; members that are not there, or None,
        are left out.
    """
    found = {}
    for member in structure.groups[name].members:
        leaf = leaves.get(member.path)
        if leaf is not None:
            xp: Any = np if isinstance(leaf, np.ndarray) else jnp
            first = xp.moveaxis(leaf, member.axis, 0)
            axis = structure.axes[member.path][member.axis]
            rows = [_rows(first, where) for where in places(axis, structure.atoms[name])]
            found[member] = rows[0] if len(rows) == 1 else xp.concatenate(rows, 1)
    return found


def _rows(x: Any, where: np.ndarray) -> Any:
    """`x` with one row for each number in `where` (the neuron of each entry, or -1), in order."""
    order = np.argsort(where, kind="stable")[(where < 0).sum() :]
    if not np.array_equal(order, np.arange(len(x))):
        x = x[order]
    return x.reshape(where.max() + 1, -1)
