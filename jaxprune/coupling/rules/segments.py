"""Concatenation and what undoes it: split, slice, pad."""

from __future__ import annotations

from typing import Any

from jaxprune.coupling.expressions import ONE, Expr, Sum, size
from jaxprune.programs.primitives import rule


@rule("concatenate", zeros="each")
def concatenate(read: Any, eqn: Any, operands: Any) -> Any:
    """The joined axis has the neurons of its segments, one segment after another."""
    along = eqn.params["dimension"]
    first, *others = operands
    for axes in others:
        for i, axis in enumerate(axes):
            if i != along:
                read.unify(first[i], axis)
    joined = Sum(tuple(axes[along] for axes in operands))
    return [tuple(joined if i == along else axis for i, axis in enumerate(first))]


@rule("stack", zeros="each")
def stack(read: Any, eqn: Any, operands: Any) -> Any:
    """A new axis, of one entry an operand."""
    read.unify_all(*operands)
    first = operands[0]
    along, new = eqn.params["axis"], Sum((ONE,) * len(operands))
    return [(*first[:along], new, *first[along:])]


@rule("unstack", zeros="each")
def unstack(read: Any, eqn: Any, operands: Any) -> Any:
    """One result for each entry of the axis, which is frozen."""
    (axes,), along = operands, eqn.params["axis"]
    read.freeze(axes[along], "taken apart by unstack")
    return [(*axes[:along], *axes[along + 1 :])] * len(eqn.outvars)


def cut(read: Any, axis: Expr, sizes: Any) -> list[Expr]:
    """The segments of `axis`."""
    parts = [read.fresh(n) for n in sizes]
    read.unify(axis, Sum(tuple(parts)), f"cut into segments of {', '.join(map(str, sizes))}")
    return parts


def _new_sizes(step: Any, keep: Any) -> dict[str, Any]:
    along = step.eqn.params["axis"]
    return {"sizes": tuple(keep.size(axes[along]) for axes in step.outputs)}


@rule("split", resize=_new_sizes, zeros="each")
def split(read: Any, eqn: Any, operands: Any) -> Any:
    """The neurons of the axis are the neurons of the parts, one part after another."""
    (axes,), along = operands, eqn.params["axis"]
    parts = cut(read, axes[along], eqn.params["sizes"])
    return [(*axes[:along], part, *axes[along + 1 :]) for part in parts]


def _new_limits(step: Any, keep: Any) -> dict[str, Any]:
    params = step.eqn.params
    bounds = zip(step.inputs[0], params["start_indices"], params["limit_indices"], strict=True)
    ends = [[keep.before(axis, at) for at in pair] for axis, *pair in bounds]
    start, limit = zip(*ends, strict=True) if ends else ((), ())
    return {"start_indices": start, "limit_indices": limit}


@rule("slice", resize=_new_limits, zeros="each")
def slice_(read: Any, eqn: Any, operands: Any) -> Any:
    """Cuts an axis in three, of which the second is left; its neurons keep their numbers."""
    params, results = eqn.params, []
    strides = params["strides"] or (1,) * len(operands[0])
    bounds = (params["start_indices"], params["limit_indices"], strides)
    for axis, start, limit, stride in zip(operands[0], *bounds, strict=True):
        n = size(axis)
        if stride != 1:
            read.freeze(axis, "sliced with a stride")
            results.append(read.frozen(-(-(limit - start) // stride), "sliced with a stride"))
        elif (start, limit) == (0, n):
            results.append(axis)
        else:
            results.append(cut(read, axis, (start, limit - start, n - limit))[1])
    return [tuple(results)]


@rule("pad", zeros="all")
def pad(read: Any, eqn: Any, operands: Any) -> Any:
    """Segments before and behind, which can't be pruned."""
    results: list[Expr] = []
    shape, padding = eqn.outvars[0].aval.shape, eqn.params["padding_config"]
    for axis, after, (low, high, interior) in zip(operands[0], shape, padding, strict=True):
        if interior or not (low >= 0 and high >= 0):
            read.freeze(axis, "padded inside, or cut")
            results.append(read.frozen(after, "padded inside, or cut"))
        else:
            ends = read.frozen(low, "padding"), read.frozen(high, "padding")
            results.append(Sum((ends[0], axis, ends[1])))
    return [tuple(results)]


def _new_slice_sizes(step: Any, keep: Any) -> dict[str, Any]:
    return {"slice_sizes": keep.shape(step.outputs[0])}


@rule("dynamic_slice", resize=_new_slice_sizes, zeros="first")
def dynamic_slice(read: Any, eqn: Any, operands: Any) -> Any:
    """Axes of which all is taken pass; where a part is, which one is not known."""
    results = []
    for axis, n in zip(operands[0], eqn.params["slice_sizes"], strict=True):
        why = "sliced at a place known at run time only"
        if n != size(axis):
            read.freeze(axis, why)
        results.append(axis if n == size(axis) else read.frozen(n, why))
    return [tuple(results)]


@rule("dynamic_update_slice", zeros="each")
def dynamic_update_slice(read: Any, eqn: Any, operands: Any) -> Any:
    """An axis that is written to in full is the same; the length of a cache is not."""
    for axis, part in zip(operands[0], operands[1], strict=True):
        if size(axis) == size(part):
            read.unify(axis, part)
        else:
            read.freeze(axis, "written to at a place known at run time only")
            read.freeze(part, "written to a place known at run time only")
    return [operands[0]]
