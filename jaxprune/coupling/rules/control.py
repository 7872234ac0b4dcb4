"""Primitives that hold a program: calls, loops, branches. Their jaxprs are read with the same axes.

Replayed, a call is its inner program, and a loop or a branch is made anew by `jax.lax`.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from jaxprune.coupling.expressions import size
from jaxprune.programs.interpret import programs, scan_parts, while_parts
from jaxprune.programs.primitives import rule


def replay_call(step: Any, keep: Any, operands: Any) -> Any:
    """The inner program is part of the one around it."""
    return keep.run(step.inner[0], operands)


def replay_remat(step: Any, keep: Any, operands: Any) -> Any:
    """The inner program, computed anew for derivatives."""
    params = step.eqn.params
    inner = lambda *xs: keep.run(step.inner[0], xs)
    remat = jax.checkpoint(inner, prevent_cse=params["prevent_cse"], policy=params["policy"])
    return remat(*operands)


def call(read: Any, eqn: Any, operands: Any) -> Any:
    """The axes go in, and come out."""
    return read.inner(programs(eqn)[0], operands)


rule("jit", "pjit", "closed_call", "core_call", "custom_lin", replay=replay_call)(call)
rule("remat", "remat2", "checkpoint", replay=replay_remat)(call)


def _replay_scan(step: Any, keep: Any, operands: Any) -> Any:
    params, (body,) = step.eqn.params, step.inner
    consts, carry, xs = scan_parts(step.eqn, operands)

    def turn(carry: Any, xs: Any) -> tuple[Any, Any]:
        results = keep.run(body, [*consts, *carry, *xs])
        return results[: len(carry)], results[len(carry) :]

    how = {name: params[name] for name in ("reverse", "unroll")}
    # a symbolic length, such as that of an exported batch, is read from the arrays
    length = params["length"] if isinstance(params["length"], int) else None
    carry, ys = lax.scan(turn, carry, xs, length, **how)
    return [*carry, *ys]


@rule("scan", replay=_replay_scan)
def scan(read: Any, eqn: Any, operands: Any) -> Any:
    """Stacked layers share their neurons: one turn of the body stands for all."""
    consts, carry, xs = scan_parts(eqn, operands)
    for axes in xs:
        read.freeze(axes[0], "the steps of a scan")
    results = read.inner(programs(eqn)[0], [*consts, *carry, *map(read.one_of, xs)])
    _same(read, carry, results)
    steps = read.frozen(eqn.params["length"], "the steps of a scan")
    return [*results[: len(carry)], *((steps, *axes) for axes in results[len(carry) :])]


def _replay_while(step: Any, keep: Any, operands: Any) -> Any:
    condition, body = step.inner
    of_condition, consts, carry = while_parts(step.eqn, operands)
    return lax.while_loop(
        lambda carry: keep.run(condition, [*of_condition, *carry])[0],
        lambda carry: keep.run(body, [*consts, *carry]),
        carry,
    )


@rule("while", replay=_replay_while)
def while_loop(read: Any, eqn: Any, operands: Any) -> Any:
    """What goes round has the same axes before and after a turn."""
    condition, body = programs(eqn)
    of_condition, consts, carry = while_parts(eqn, operands)
    read.inner(condition, [*of_condition, *carry])
    _same(read, carry, read.inner(body, [*consts, *carry]))
    return carry


def _replay_cond(step: Any, keep: Any, operands: Any) -> Any:
    index, *rest = operands
    branches = [lambda *xs, way=way: keep.run(way, xs) for way in step.inner]
    return lax.switch(index, branches, *rest)


@rule("cond", replay=_replay_cond)
def cond(read: Any, eqn: Any, operands: Any) -> Any:
    """The results of all branches have the same axes."""
    ways = [read.inner(branch, operands[1:]) for branch in programs(eqn)]
    for way in ways[1:]:
        _same(read, ways[0], way)
    return ways[0]


def _same(read: Any, values: Any, others: Any) -> None:
    """These values have the same axes, in pairs as far as both go."""
    for pair in zip(values, others, strict=False):
        for axis, other in zip(*pair, strict=True):
            if size(axis) not in (0, 1):
                read.unify(axis, other)
