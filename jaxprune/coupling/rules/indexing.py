"""Gather and scatter: an axis that a window covers stays, an axis that is indexed freezes."""

from __future__ import annotations

from typing import Any

from jaxprune.coupling.expressions import Expr, size
from jaxprune.programs.primitives import rule

INDEXED = "indexed by gather: rows of a table"


def _new_slice_sizes(step: Any, keep: Any) -> dict[str, Any]:
    sizes, axes = step.eqn.params["slice_sizes"], step.inputs[0]
    pairs = zip(sizes, axes, strict=True)
    return {"slice_sizes": tuple(keep.size(a) if n == size(a) else n for n, a in pairs)}


@rule("gather", resize=_new_slice_sizes, zeros="first")
def gather(read: Any, eqn: Any, operands: Any) -> Any:
    """`table[indices]`: batch axes are the indices', axes that the window covers the table's."""
    (table, indices), numbers = operands, eqn.params["dimension_numbers"]
    sizes, window = eqn.params["slice_sizes"], []
    batch = dict(
        zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    )
    for i, axis in enumerate(table):
        if i in batch:
            read.unify(axis, indices[batch[i]])
        elif i in numbers.collapsed_slice_dims:
            if size(axis) != 1:
                read.freeze(axis, INDEXED)
        elif sizes[i] == size(axis):
            window.append(axis)
        else:
            read.freeze(axis, INDEXED)
            window.append(read.frozen(sizes[i], INDEXED))
    return [_interleaved(window, indices[:-1], numbers.offset_dims)]


def _interleaved(window: list[Expr], batch: Any, offsets: Any) -> tuple[Expr, ...]:
    """The window's axes at the places `offsets`, the axes of the indices at the others."""
    windows, rest = iter(window), iter(batch)
    rank = len(window) + len(batch)
    return tuple(next(windows) if i in offsets else next(rest) for i in range(rank))


@rule("scatter", "scatter-mul", "scatter-min", "scatter-max", "scatter_mul", "scatter_min",
      "scatter_max", "scatter-sub")  # fmt: skip
def scatter(read: Any, eqn: Any, operands: Any) -> Any:
    """`table.at[indices].set(updates)`, or `add`: the reverse of a gather."""
    (table, indices, updates), numbers = operands, eqn.params["dimension_numbers"]
    batch = dict(
        zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    )
    window = iter([updates[i] for i in numbers.update_window_dims])
    for i, axis in enumerate(table):
        if i in batch:
            read.unify(axis, indices[batch[i]])
        elif i in numbers.inserted_window_dims:
            read.freeze(axis, "scattered to")
        elif size(update := next(window)) == size(axis):
            read.unify(axis, update)
        else:
            read.freeze(axis, "scattered to")
            read.freeze(update, "scattered to")
    others = [axis for i, axis in enumerate(updates) if i not in numbers.update_window_dims]
    for axis, index in zip(others, indices[:-1], strict=True):
        read.unify(axis, index)
    return [table]


rule("scatter-add", "scatter_add", zeros="all")(scatter)
