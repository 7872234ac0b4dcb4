"""Which results of a function are zero wherever its masked inputs are, read off its jaxpr.

An optimizer that is given only zeros at a pruned weight mostly writes only zeros there: a moment
is a sum of products. Where that can be proven, its new state need not be masked again, which on
CPU would cost three times the optimizer's own step: the update and the masked moment would both
read the old moment, so that it could no longer be overwritten in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from jaxprune.base import is_known

# f(0) = 0, elementwise, and f(0, 0) = 0
ALL_ZERO = {
    "abs", "add", "add_any", "convert_element_type", "copy", "copy_p", "cbrt", "expm1",
    "max", "min", "neg", "reduce_precision", "sign", "sin",
    "sqrt", "square", "stop_gradient", "sub", "tan", "tanh",
}  # fmt: skip
_ONE_ZERO = {"mul", "and"}
_CALLS = {"closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat2"}


def keeps_zeros(f: Callable[..., Any], zero: Sequence[bool], *args: Any) -> list[bool]:
    """For each leaf of `f(*args)`: is it zero wherever the masked leaves of `args` are?

    Args:
      f: elementwise where it matters; traced, not run.
      zero: for each leaf of `args`, whether it is zero at the pruned positions.
      *args: pytrees of arrays.

    Returns:
      True where that is proven; anything but elementwise arithmetic proves nothing. A quotient
      counts as zero where its numerator is: no denominator is taken to be zero.
    """
    return _flow(jax.make_jaxpr(f)(*args), zero)


def _flow(closed: ClosedJaxpr, zero_in: Sequence[bool]) -> list[bool]:
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.invars, zero_in, strict=True))
    known |= {v: _is_zero(c) for v, c in zip(jaxpr.constvars, closed.consts, strict=True)}

    def is_zero(atom: Any) -> bool:
        return _is_zero(atom.val) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        results = _outcome(eqn, [is_zero(atom) for atom in eqn.invars])
        known |= dict(zip(eqn.outvars, results, strict=True))
    return [is_zero(atom) for atom in jaxpr.outvars]


def _outcome(eqn: Any, zero: list[bool]) -> list[bool]:
    """For each result of one equation, whether it is zero where the inputs marked `zero` are."""
    primitive = str(eqn.primitive)
    if primitive in ALL_ZERO:
        return [all(zero)]
    if primitive == "optimization_barrier":
        return zero
    if primitive == "integer_pow":
        return [zero[0] and eqn.params["y"] > 0]
    if primitive in _ONE_ZERO:
        return [any(zero)]
    if primitive == "div":
        return [zero[0]]
    if primitive == "select_n":
        return [all(zero[1:])]
    if primitive == "broadcast_in_dim":  # of a constant zero; an axis that moves is no proof
        is_whole = eqn.invars[0].aval.shape in ((), eqn.outvars[0].aval.shape)
        return [zero[0] and is_whole]
    if primitive in _CALLS:
        inner = [p for p in eqn.params.values() if isinstance(p, ClosedJaxpr)]
        if len(inner) == 1 and len(inner[0].jaxpr.invars) == len(zero):
            return _flow(inner[0], zero)
    if primitive == "cond":
        branches = [_flow(branch, zero[1:]) for branch in eqn.params["branches"]]
        return [all(results) for results in zip(*branches, strict=True)]
    return [False] * len(eqn.outvars)


def _is_zero(constant: Any) -> bool:
    if not is_known(constant) or not hasattr(constant, "dtype"):
        return isinstance(constant, (int, float)) and constant == 0
    if np.size(constant) != 1 or not np.issubdtype(constant.dtype, np.number):
        return False
    return not np.asarray(constant).any()  # its own `any` would be traced
