"""Primitives that hold a program: calls, loops, branches. Their jaxprs are read with the same axes.

Replayed, a call is its inner program, and a loop or a branch is made anew by `jax.lax`.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxprune.coupling.expressions import size
from jaxprune.coupling.rules.registry import rule
from jaxprune.programs.jaxprs import scan_ends


def _replay_call(step: Any, keep: Any, operands: Any) -> Any:
    return keep.run(step.inner[0], operands)


@rule("jit", "pjit", "closed_call", "core_call", "custom_lin", replay=_replay_call)
def call(read: Any, eqn: Any, operands: Any) -> Any:
    """Its program is part of the one around it."""
    (jaxpr,) = [p for p in eqn.params.values() if isinstance(p, (Jaxpr, ClosedJaxpr))]
    return read.inner(jaxpr, operands)


def _replay_remat(step: Any, keep: Any, operands: Any) -> Any:
    params = step.eqn.params
    inner = lambda *xs: keep.run(step.inner[0], xs)
    remat = jax.checkpoint(inner, prevent_cse=params["prevent_cse"], policy=params["policy"])
    return remat(*operands)


@rule("remat", "remat2", "checkpoint", replay=_replay_remat)
def remat(read: Any, eqn: Any, operands: Any) -> Any:
    return read.inner(eqn.params["jaxpr"], operands)


def _replay_scan(step: Any, keep: Any, operands: Any) -> Any:
    params, (body,) = step.eqn.params, step.inner
    first, last = scan_ends(params)

    def turn(carry: Any, xs: Any) -> tuple[Any, Any]:
        results = keep.run(body, [*operands[:first], *carry, *xs])
        return results[: last - first], results[last - first :]

    how = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(turn, list(operands[first:last]), list(operands[last:]), **how)
    return [*carry, *ys]


@rule("scan", replay=_replay_scan)
def scan(read: Any, eqn: Any, operands: Any) -> Any:
    """Stacked layers share their neurons: one turn of the body stands for all."""
    params = eqn.params
    first, last = scan_ends(params)
    for axes in operands[last:]:
        read.freeze(axes[0], "the steps of a scan")
    results = read.inner(params["jaxpr"], [*operands[:last], *map(read.one_of, operands[last:])])
    _same(read, operands[first:last], results)
    steps = read.frozen(params["length"], "the steps of a scan")
    return [*results[: last - first], *((steps, *axes) for axes in results[last - first :])]


def _replay_while(step: Any, keep: Any, operands: Any) -> Any:
    params, (condition, body) = step.eqn.params, step.inner
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    return lax.while_loop(
        lambda carry: keep.run(condition, [*operands[:first], *carry])[0],
        lambda carry: keep.run(body, [*operands[first:last], *carry]),
        list(operands[last:]),
    )


@rule("while", replay=_replay_while)
def while_loop(read: Any, eqn: Any, operands: Any) -> Any:
    """What goes round has the same axes before and after a turn."""
    first = eqn.params["cond_nconsts"]
    last = first + eqn.params["body_nconsts"]
    carry = operands[last:]
    read.inner(eqn.params["cond_jaxpr"], [*operands[:first], *carry])
    _same(read, carry, read.inner(eqn.params["body_jaxpr"], operands[first:]))
    return carry


def _replay_cond(step: Any, keep: Any, operands: Any) -> Any:
    index, *rest = operands
    branches = [lambda *xs, own=own: keep.run(own, xs) for own in step.inner]
    return lax.switch(index, branches, *rest)


@rule("cond", replay=_replay_cond)
def cond(read: Any, eqn: Any, operands: Any) -> Any:
    """What all branches give has the same axes."""
    ways = [read.inner(branch, operands[1:]) for branch in eqn.params["branches"]]
    for way in ways[1:]:
        _same(read, ways[0], way)
    return ways[0]


def _same(read: Any, values: Any, others: Any) -> None:
    """These values have the same axes, in pairs as far as both go."""
    for axes, own in zip(values, others, strict=False):
        for axis, other in zip(axes, own, strict=True):
            if size(axis) not in (0, 1):
                read.unify(axis, other)
