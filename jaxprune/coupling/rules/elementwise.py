"""Primitives that work entry by entry: their operands' axes are the same, place by place.

Numpy computes an entry of the result from entries of the operands: no device, no compilation. It
follows where results are zero, except for products, quotients and functions that numpy has not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.coupling.expressions import ONE, size
from jaxprune.programs.primitives import rule

Numbers = Callable[..., Any]


def _of(f: Any) -> Numbers:
    return lambda params, *xs: f(*xs)


def _of_floats(f: Callable[..., Any]) -> Numbers:
    """Integers are divided otherwise by numpy."""
    return lambda params, *xs: f(*xs) if jnp.issubdtype(xs[0].dtype, jnp.floating) else None


def _unknown(params: Any, *xs: Any) -> Any:
    return None


def _converted(x: Any, dtype: Any) -> Any:
    return (x if jnp.issubdtype(dtype, jnp.complexfloating) else np.real(x)).astype(dtype)


def _same(params: Any, x: Any) -> Any:
    return x


ONE_OPERAND: dict[str, Numbers] = {
    "convert_element_type": lambda params, x: _converted(x, params["new_dtype"]),
    "integer_pow": lambda params, x: x ** np.asarray(params["y"], x.dtype),
    "rsqrt": lambda params, x: np.ones_like(x) / np.sqrt(x),
} | {
    name: _of(f) for name, f in {
        "abs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin,
        "asinh": np.arcsinh, "atan": np.arctan, "atanh": np.arctanh, "cbrt": np.cbrt,
        "ceil": np.ceil, "conj": np.conj, "cos": np.cos, "cosh": np.cosh, "exp": np.exp,
        "exp2": np.exp2, "expm1": np.expm1, "floor": np.floor, "imag": np.imag,
        "is_finite": np.isfinite, "log": np.log, "log1p": np.log1p, "log2": np.log2,
        "neg": np.negative, "not": np.bitwise_not, "real": np.real, "sign": np.sign,
        "sin": np.sin, "sinh": np.sinh, "sqrt": np.sqrt, "square": np.square, "tan": np.tan,
        "tanh": np.tanh,
    }.items()
} | dict.fromkeys(
    ("copy", "copy_p", "device_put", "layout_constraint", "name", "pvary", "reshard",
     "sharding_constraint", "stop_gradient"), _same,
) | dict.fromkeys(
    ("bessel_i0e", "bessel_i1e", "clz", "digamma", "erfc", "lgamma", "logistic",
     "one_minus_square", "population_count"), _unknown,
)  # fmt: skip
MANY_OPERANDS: dict[str, Numbers] = {
    "clamp": lambda params, low, x, high: np.minimum(np.maximum(x, low), high),
    "pow": _of_floats(np.power),
} | {
    name: _of(f) for name, f in {
        "add": np.add, "add_any": np.add, "eq": np.equal, "ge": np.greater_equal, "gt": np.greater,
        "le": np.less_equal, "lt": np.less, "max": np.maximum, "min": np.minimum,
        "ne": np.not_equal, "or": np.bitwise_or, "sub": np.subtract, "xor": np.bitwise_xor,
    }.items()
} | dict.fromkeys(
    ("atan2", "complex", "igamma", "igamma_grad_a", "igammac", "mulhi", "nextafter", "polygamma",
     "random_gamma_grad", "regularized_incomplete_beta", "shift_left", "shift_right_arithmetic",
     "shift_right_logical", "zeta"), _unknown,
)  # fmt: skip
# where zeros do not follow from the numbers
ZEROS: dict[str, tuple[str, Numbers]] = {
    "and": ("any", _of(np.bitwise_and)), "mul": ("any", _of(np.multiply)),
    "div": ("first", _of_floats(np.divide)), "rem": ("first", _unknown),
    "select_n": ("cases", lambda params, which, *cases: cases[int(which)]),
}  # fmt: skip


def same_axes(read: Any, eqn: Any, operands: Any) -> Any:
    """Each result has the axes of the operand in its place."""
    return operands


def entrywise(read: Any, eqn: Any, operands: Any) -> Any:
    """Operands of rank 0, and axes of size 1 next to larger ones, broadcast inside a primitive."""
    results = []
    for i, n in enumerate(eqn.outvars[0].aval.shape):
        same = [axes[i] for axes in operands if axes and size(axes[i]) == n]
        for axis in same[1:]:
            read.unify(same[0], axis)
        results.append(same[0] if same else ONE)
    return [tuple(results)]


for _name, _number in ONE_OPERAND.items():
    rule(_name, elementwise=_number)(same_axes)
for _name, _number in MANY_OPERANDS.items():
    rule(_name, elementwise=_number)(entrywise)
for _name, (_zeros, _number) in ZEROS.items():
    rule(_name, zeros=_zeros, elementwise=_number)(entrywise)
# f(0) = 0, and numpy has no f
rule("erf", "erf_inv", "reduce_precision", "round", zeros="each", elementwise=_unknown)(same_axes)
rule("optimization_barrier", zeros="each")(same_axes)


@rule("bitcast_convert_type")
def bitcast(read: Any, eqn: Any, operands: Any) -> Any:
    """Bits as another dtype: a wider one reads the last axis, a narrower one adds an axis."""
    why = "the parts of a number"
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if len(new) < len(old):
        read.freeze(operands[0][-1], why)
    parts = tuple(read.frozen(n, why) for n in new[len(old) :])
    return [(*operands[0][: len(new)], *parts)]
