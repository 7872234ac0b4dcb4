"""Matrix products and convolutions: what is contracted is the same on both sides."""

from __future__ import annotations

from typing import Any

from jaxprune.coupling.expressions import ONE, Prod, size
from jaxprune.coupling.rules.registry import rule
from jaxprune.programs.jaxprs import leading_experts


@rule("dot_general")
def dot_general(read: Any, eqn: Any, operands: Any) -> Any:
    """Batch axes, then those left of the first operand, then of the second."""
    contracted, batch = eqn.params["dimension_numbers"]
    lhs, rhs = operands
    for pairs in (contracted, batch):
        for i, j in zip(*pairs, strict=True):
            read.unify(lhs[i], rhs[j])
    free = [
        axis
        for axes, used in zip(operands, zip(contracted, batch, strict=True), strict=True)
        for i, axis in enumerate(axes)
        if i not in (*used[0], *used[1])
    ]
    return [(*(lhs[i] for i in batch[0]), *free)]


EXPERTS = "of each expert, whose rows are known at run time only"


@rule("ragged_dot_general")
def ragged_dot_general(read: Any, eqn: Any, operands: Any) -> Any:
    """Rows, segment by segment, times the matrix of an expert: (rows, in), (experts, in, out).

    Experts share their neurons. A derivative sums over the ragged axis, expert by expert.
    """
    ragged = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, batch), rows = ragged.dot_dimension_numbers, ragged.lhs_ragged_dimensions
    groups, (lhs, rhs, sizes) = ragged.rhs_group_dimensions, operands
    for pairs in (contracted, batch):
        for i, j in zip(*pairs, strict=True):
            read.unify(lhs[i], rhs[j])
    for axis in (*(lhs[i] for i in rows), *(rhs[i] for i in groups), *sizes):
        read.freeze(axis, EXPERTS)
    left = [axis for i, axis in enumerate(lhs) if i not in (*contracted[0], *batch[0])]
    right = [axis for i, axis in enumerate(rhs) if i not in (*contracted[1], *batch[1], *groups)]
    shape = eqn.outvars[0].aval.shape[: leading_experts(eqn)]
    experts = [read.frozen(n, EXPERTS) for n in shape]
    return [(*experts, *(lhs[i] for i in batch[0]), *left, *right)]


def _new_groups(step: Any, keep: Any) -> dict[str, Any]:
    if step.eqn.params["feature_group_count"] == 1:
        return {}
    numbers = step.eqn.params["dimension_numbers"]
    channels = keep.size(step.inputs[0][numbers.lhs_spec[1]])
    return {
        "feature_group_count": channels // keep.size(step.inputs[1][numbers.rhs_spec[1]]),
    }


@rule("conv_general_dilated", resize=_new_groups)
def conv_general_dilated(read: Any, eqn: Any, operands: Any) -> Any:
    """Input channels are groups x inputs of a group, output channels groups x outputs of one."""
    params, (lhs, rhs) = eqn.params, operands
    if params["batch_group_count"] != 1:
        return read.freeze_all(eqn, operands, "convolved with batch_group_count")
    (n, c, *space), (o, i, *window), (n_out, o_out, *space_out) = params["dimension_numbers"]
    groups = params["feature_group_count"]
    if groups == 1:
        read.unify(lhs[c], rhs[i])
    else:
        group, own = read.fresh(groups), read.fresh(size(rhs[o]) // groups)
        read.unify(lhs[c], Prod((group, rhs[i])))
        read.unify(rhs[o], Prod((group, own)))
    for axis in space:
        read.freeze(lhs[axis], "a spatial axis of a convolution")
    for axis in window:
        read.freeze(rhs[axis], "the window of a convolution")
    result = [ONE] * len(lhs)
    result[n_out], result[o_out] = lhs[n], rhs[o]
    for axis in space_out:
        result[axis] = read.frozen(
            eqn.outvars[0].aval.shape[axis], "a spatial axis of a convolution"
        )
    return [tuple(result)]
