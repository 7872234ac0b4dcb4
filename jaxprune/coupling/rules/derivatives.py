"""Functions with custom derivatives, `jax.custom_jvp` and `jax.custom_vjp`, which stay custom.

The derivative is a program too: it is read with the same axes, and replayed as the derivative of
the replayed function. A second derivative is JAX's derivative of the first.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun

from jaxprune.programs.primitives import rule


def _function(eqn: Any) -> Any:
    """The equation as a function of its operands, differentiated by the rule that it carries."""
    inner = eqn.params["call_jaxpr"].jaxpr
    results = [Var(var.aval) for var in eqn.outvars]
    alone = eqn.replace(invars=inner.invars, outvars=results)
    return jaxpr_as_fun(ClosedJaxpr(inner.replace(constvars=[], outvars=results, eqns=[alone]), []))


def _is_real(var: Any) -> bool:
    return jnp.issubdtype(getattr(var.aval, "dtype", bool), jnp.inexact)


def _real(eqn: Any) -> list[int]:
    """Which operands it can be differentiated by."""
    return [i for i, var in enumerate(eqn.invars) if _is_real(var)]


def _with(operands: Any, real: list[int], values: Any) -> list[Any]:
    replaced = dict(zip(real, values, strict=True))
    return [replaced.get(i, operand) for i, operand in enumerate(operands)]


def _shapes(variables: Any) -> list[Any]:
    return [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in variables]


def _read(read: Any, eqn: Any, operands: Any, derivative: Any) -> Any:
    """Reads the function, and its derivative unless it is part of one, or has none."""
    results = read.inner(eqn.params["call_jaxpr"], operands)
    if not read.in_derivative and _real(eqn) and all(map(_is_real, eqn.outvars)):
        read.in_derivative = True
        derivative(results)
        read.in_derivative = False
    return results


def _unify(read: Any, values: Any, others: Any) -> None:
    for pair in zip(values, others, strict=True):
        read.unify_all(*pair)


def _replay_jvp(step: Any, keep: Any, operands: Any) -> Any:
    function = lambda *xs: keep.run(step.inner[0], xs)
    if len(step.inner) == 1:
        return function(*operands)
    real, function = _real(step.eqn), jax.custom_jvp(function)

    @function.defjvp
    def jvp(primals: Any, tangents: Any) -> Any:
        both = keep.run(step.inner[1], [*primals, *(tangents[i] for i in real)])
        return both[: len(both) // 2], both[len(both) // 2 :]

    return function(*operands)


@rule("custom_jvp_call", replay=_replay_jvp)
def custom_jvp_call(read: Any, eqn: Any, operands: Any) -> Any:
    """The derivative reads the operands, and the tangents of those that are real."""

    def derivative(results: Any) -> None:
        real, function = _real(eqn), _function(eqn)

        def jvp(primals: Any, tangents: Any) -> Any:
            of_real = lambda *xs: function(*_with(primals, real, xs))
            return jax.jvp(of_real, [primals[i] for i in real], tangents)

        shapes = _shapes(eqn.invars)
        jaxpr = jax.make_jaxpr(jvp)(shapes, [shapes[i] for i in real])
        both = read.inner(jaxpr, [*operands, *(operands[i] for i in real)])
        _unify(read, [*results, *results], both)

    return _read(read, eqn, operands, derivative)


def _replay_vjp(step: Any, keep: Any, operands: Any) -> Any:
    function = lambda *xs: keep.run(step.inner[0], xs)
    if len(step.inner) == 1:
        return function(*operands)
    real, function = _real(step.eqn), jax.custom_vjp(function)

    def backward(primals: Any, cotangents: Any) -> Any:
        slopes = keep.run(step.inner[1], [*primals, *cotangents])
        return tuple(_with([None] * len(primals), real, slopes))

    function.defvjp(lambda *xs: (keep.run(step.inner[0], xs), xs), backward)
    return function(*operands)


@rule("custom_vjp_call", "custom_vjp_call_jaxpr", replay=_replay_vjp)
def custom_vjp_call(read: Any, eqn: Any, operands: Any) -> Any:
    """The backward pass computes the forward pass anew, which a compiler sees through."""

    def derivative(results: Any) -> None:
        real, function = _real(eqn), _function(eqn)

        def vjp(primals: Any, cotangents: Any) -> Any:
            of_real = lambda *xs: function(*_with(primals, real, xs))
            return jax.vjp(of_real, *(primals[i] for i in real))[1](cotangents)

        jaxpr = jax.make_jaxpr(vjp)(_shapes(eqn.invars), _shapes(eqn.outvars))
        slopes = read.inner(jaxpr, [*operands, *results])
        _unify(read, [operands[i] for i in real], slopes)

    return _read(read, eqn, operands, derivative)
