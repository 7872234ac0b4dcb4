"""Primitives that move entries and compute nothing: reshape, broadcast, transpose."""

from __future__ import annotations

import math
from typing import Any

from jaxprune.coupling.expressions import ONE, Axes, Prod, is_less, size
from jaxprune.programs.primitives import rule


@rule("transpose", zeros="each")
def transpose(read: Any, eqn: Any, operands: Any) -> Any:
    """The same axes in another order."""
    return [tuple(operands[0][i] for i in eqn.params["permutation"])]


@rule("squeeze", zeros="each")
def squeeze(read: Any, eqn: Any, operands: Any) -> Any:
    """Axes of one entry go; the others stay."""
    gone = eqn.params["dimensions"]
    return [tuple(axis for i, axis in enumerate(operands[0]) if i not in gone)]


def _new_shape(name: str) -> Any:
    return lambda step, keep: {name: keep.shape(step.outputs[0])}


@rule("broadcast_in_dim", resize=_new_shape("shape"), zeros="each")
def broadcast_in_dim(read: Any, eqn: Any, operands: Any) -> Any:
    """An axis that is repeated is a new one, to be pruned like any other: `repeat` of GQA."""
    results = [read.fresh(n) for n in eqn.params["shape"]]
    for axis, at in zip(operands[0], eqn.params["broadcast_dimensions"], strict=True):
        if size(axis) == eqn.params["shape"][at]:
            results[at] = axis
    return [tuple(results)]


def _new_reps(step: Any, keep: Any) -> dict[str, Any]:
    pairs = zip(keep.shape(step.outputs[0]), keep.shape(step.inputs[0]), strict=True)
    return {"reps": tuple(n // m if m != 0 else 0 for n, m in pairs)}


@rule("tile", resize=_new_reps, zeros="each")
def tile(read: Any, eqn: Any, operands: Any) -> Any:
    """Copies one after another: a product of the copies, which may be pruned, and the axis."""
    pairs = zip(eqn.params["reps"], operands[0], strict=True)
    return [tuple(axis if n == 1 else Prod((read.fresh(n), axis)) for n, axis in pairs)]


@rule("reshape", resize=_new_shape("new_sizes"), zeros="each")
def reshape(read: Any, eqn: Any, operands: Any) -> Any:
    """Axes are merged or cut: see `regrouped`."""
    shape, order = eqn.params["new_sizes"], eqn.params.get("dimensions")
    if 0 in shape:
        return read.freeze_all(eqn, operands[:1], "reshaped, and empty")
    axes = operands[0] if order is None else tuple(operands[0][i] for i in order)
    return [regrouped(read, axes, shape)]


def regrouped(read: Any, axes: Axes, shape: tuple[int, ...]) -> Axes:
    """The axes of a row-major reshape: blocks of equal product are merged, cut, or both."""
    before = [axis for axis in axes if size(axis) != 1]
    after = [n for n in shape if n != 1]
    axes_after: list[Any] = []
    while after:
        old, wanted = [before.pop(0)], [after.pop(0)]
        while (have := math.prod(map(size, old))) != (want := math.prod(wanted)):
            if is_less(have, want):
                old.append(before.pop(0))
            else:
                wanted.append(after.pop(0))
        new = [Prod(tuple(old))] if len(wanted) == 1 else [read.fresh(n) for n in wanted]
        if len(wanted) > 1:
            sizes = f"({', '.join(map(str, map(size, old)))}) -> ({', '.join(map(str, wanted))})"
            read.unify(Prod(tuple(old)), Prod(tuple(new)), f"reshape {sizes} cuts across")
        axes_after += new
    rest = iter(axes_after)
    return tuple(ONE if n == 1 else next(rest) for n in shape)
