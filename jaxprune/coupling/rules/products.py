"""Matrix products and convolutions: contracted axes are the same on both sides."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from jaxprune.coupling.expressions import ONE, Prod, size
from jaxprune.programs.primitives import Side, rule

EXPERTS = "of each expert, whose rows are known at run time only"


def _dot_sides(eqn: Any) -> tuple[Side, Side]:
    contracted, batch = eqn.params["dimension_numbers"]
    return Side(contracted[0], batch[0]), Side(contracted[1], batch[1])


@rule("dot_general", zeros="any", product=_dot_sides)
def dot_general(read: Any, eqn: Any, operands: Any) -> Any:
    """Batch axes, then those left of the first operand, then of the second."""
    (lhs, rhs), (left, right) = operands, _dot_sides(eqn)
    _unify(read, [(lhs, left.contracted), (rhs, right.contracted)])
    _unify(read, [(lhs, left.batch), (rhs, right.batch)])
    return [(*(lhs[i] for i in left.batch), *_free(lhs, left), *_free(rhs, right))]


def _ragged_sides(eqn: Any) -> tuple[Side, Side]:
    ragged = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batch = ragged.dot_dimension_numbers
    experts = tuple(ragged.rhs_group_dimensions)
    return Side(contracted[0], batch[0]), Side(contracted[1], (*batch[1], *experts))


def _ragged_flops(eqn: Any, inputs: Any, outputs: Any) -> Any:
    """Each row is read by one expert."""
    experts = _leading_experts(eqn)
    return 2, *outputs[0][experts:], *(inputs[0][i] for i in _ragged_sides(eqn)[0].contracted)


def _leading_experts(eqn: Any) -> int:
    """How many axes of experts the result begins with: 1 in derivatives, else 0."""
    ragged, (side, _) = eqn.params["ragged_dot_dimension_numbers"], _ragged_sides(eqn)
    return int({*ragged.lhs_ragged_dimensions} <= {*side.contracted})


@rule("ragged_dot_general", zeros="any", product=_ragged_sides, flops=_ragged_flops)
def ragged_dot_general(read: Any, eqn: Any, operands: Any) -> Any:
    """Rows, segment by segment, times the matrix of an expert: (rows, in), (experts, in, out).

    Experts share their neurons. A derivative sums over the ragged axis, expert by expert.
    """
    ragged = eqn.params["ragged_dot_dimension_numbers"]
    (lhs, rhs, sizes), (left, right) = operands, _ragged_sides(eqn)
    _unify(read, [(lhs, left.contracted), (rhs, right.contracted)])
    _unify(read, [(lhs, left.batch), (rhs, right.batch[: len(left.batch)])])
    rows = [lhs[i] for i in ragged.lhs_ragged_dimensions]
    for axis in (*rows, *(rhs[i] for i in ragged.rhs_group_dimensions), *sizes):
        read.freeze(axis, EXPERTS)
    experts = [read.frozen(n, EXPERTS) for n in eqn.outvars[0].aval.shape[: _leading_experts(eqn)]]
    free = *(lhs[i] for i in left.batch), *_free(lhs, left), *_free(rhs, right)
    return [(*experts, *free)]


def _unify(read: Any, sides: Any) -> None:
    """Axes of two values are the same, in pairs."""
    (lhs, some), (rhs, others) = sides
    for i, j in zip(some, others, strict=True):
        read.unify(lhs[i], rhs[j])


def _free(axes: Any, side: Side) -> list[Any]:
    return [axis for i, axis in enumerate(axes) if i not in (*side.contracted, *side.batch)]


def _conv_sides(eqn: Any) -> tuple[Side, Side]:
    (_, c, *space), (_, i, *window), _ = eqn.params["dimension_numbers"]
    return Side((c,), window=tuple(space)), Side((i,), window=tuple(window))


def _conv_flops(eqn: Any, inputs: Any, outputs: Any) -> Any:
    """2 * outputs * (inputs / groups) * window; the zeros of an input dilation cost nothing."""
    out = eqn.params["dimension_numbers"].rhs_spec[0]
    dilation = (Fraction(1, n) for n in eqn.params["lhs_dilation"])
    return 2, *outputs[0], *(n for i, n in enumerate(inputs[1]) if i != out), *dilation


def _new_groups(step: Any, keep: Any) -> dict[str, Any]:
    if step.eqn.params["feature_group_count"] == 1:
        return {}
    numbers = step.eqn.params["dimension_numbers"]
    channels = keep.size(step.inputs[0][numbers.lhs_spec[1]])
    inputs = keep.size(step.inputs[1][numbers.rhs_spec[1]])
    return {"feature_group_count": channels // inputs}


@rule(
    "conv_general_dilated",
    resize=_new_groups,
    zeros="any",
    product=_conv_sides,
    flops=_conv_flops,
)
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
        group, outputs = read.fresh(groups), read.fresh(size(rhs[o]) // groups)
        read.unify(lhs[c], Prod((group, rhs[i])))
        read.unify(rhs[o], Prod((group, outputs)))
    for axis in space:
        read.freeze(lhs[axis], "a spatial axis of a convolution")
    for axis in window:
        read.freeze(rhs[axis], "the window of a convolution")
    result = [ONE] * len(lhs)
    result[n_out], result[o_out] = lhs[n], rhs[o]
    for axis in space_out:
        n_places = eqn.outvars[0].aval.shape[axis]
        result[axis] = read.frozen(n_places, "a spatial axis of a convolution")
    return [tuple(result)]
