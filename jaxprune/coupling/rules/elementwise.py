"""Primitives that work entry by entry: their operands' axes are the same, place by place."""

from __future__ import annotations

from typing import Any

from jaxprune.coupling.expressions import ONE, size
from jaxprune.coupling.rules.registry import rule

ONE_OPERAND = {
    "abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "bessel_i0e", "bessel_i1e", "cbrt",
    "ceil", "conj", "convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "erf",
    "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "imag", "integer_pow", "is_finite",
    "lgamma", "log", "log1p", "log2", "logistic", "neg", "not", "one_minus_square",
    "population_count", "real", "reduce_precision", "round", "rsqrt", "sharding_constraint",
    "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "tan", "tanh", "name", "clz",
    "layout_constraint", "pvary", "reshard",
}  # fmt: skip
MANY_OPERANDS = {
    "add", "add_any", "and", "atan2", "clamp", "complex", "div", "eq", "ge", "gt", "igamma",
    "igamma_grad_a", "igammac", "le", "lt", "max", "min", "mul", "mulhi", "ne", "nextafter", "or",
    "polygamma", "pow", "random_gamma_grad", "regularized_incomplete_beta", "rem",
    "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sub", "xor",
    "zeta",
}  # fmt: skip


@rule(*ONE_OPERAND, "device_put", "optimization_barrier")
def same_axes(read: Any, eqn: Any, operands: Any) -> Any:
    return operands


@rule("bitcast_convert_type")
def bitcast(read: Any, eqn: Any, operands: Any) -> Any:
    """Bits as another dtype: a wider one reads the last axis, a narrower one adds an axis."""
    why = "the parts of a number"
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if len(new) < len(old):
        read.freeze(operands[0][-1], why)
    parts = tuple(read.frozen(n, why) for n in new[len(old) :])
    return [(*operands[0][: len(new)], *parts)]


@rule(*MANY_OPERANDS)
def entrywise(read: Any, eqn: Any, operands: Any) -> Any:
    """Operands of rank 0, and axes of size 1 next to larger ones, broadcast inside a primitive."""
    results = []
    for i, n in enumerate(eqn.outvars[0].aval.shape):
        same = [axes[i] for axes in operands if axes and size(axes[i]) == n]
        for axis in same[1:]:
            read.unify(same[0], axis)
        results.append(same[0] if same else ONE)
    return [tuple(results)]
