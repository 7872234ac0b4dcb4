"""Programs in programs, run on `Value`s: calls, loops, branches, derivatives.

`run` is the `Simplify` that runs the program around them. A fact about a carry must be true in
every turn, and a fact about a result in every branch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
from jax import lax

from jaxprune.coupling.reader import Program, Step, axes_rule
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.rules.control import replay_call, replay_remat
from jaxprune.coupling.zeros import Value
from jaxprune.programs.interpret import scan_parts, while_parts


def inner(run: Any, step: Step, operands: list[Value]) -> list[Value]:
    """The results of an equation that holds programs."""
    kind, rule = step.eqn.primitive.name, axes_rule(step.eqn)
    if kind in _LOOPS:
        return _LOOPS[kind](run, step, operands)
    if rule is not None and rule.replay in (replay_call, replay_remat):
        return list(rule.replay(step, run, operands))
    # custom derivatives and rules of users run on arrays, if anything is left to compute
    if kind.startswith("custom_"):
        results = _shapes(lambda *xs: run.run(step.inner[0], xs), *operands)
    else:
        depends = any(value.depends for value in operands)
        severed = not depends and any(value.severed for value in operands)
        results = [Value(0.0, depends, severed)] * len(step.outputs)
    if all(value.x is None for value in results):
        return results
    arrays = list(map(run.whole, operands, step.eqn.invars, step.inputs))
    pairs = zip(results, Keep(run.kept).step(step, arrays), strict=True)
    return [value if value.x is None else _with(value, x) for value, x in pairs]


def _shapes(f: Callable[..., Any], *operands: Any) -> Any:
    return jax.eval_shape(f, *operands)


def _with(value: Value, x: Any) -> Value:
    return Value(x, value.depends, value.severed)


def _weaker(a: Value, b: Value) -> Value:
    """The facts about a value that may be either; its x is None, or not."""
    x = a.x if b.x is None else b.x
    depends = a.depends or b.depends
    return Value(x, depends, not depends and (a.severed or b.severed))


def _known(value: Value) -> tuple[bool, bool, bool]:
    return value.x is None, value.depends, value.severed


def _depending(values: list[Value]) -> list[Value]:
    """The values, where an input chooses among several: those that are not zero depend on it."""
    return [value if value.x is None else Value(value.x, True) for value in values]


def _conform(run: Any, likes: Any, values: Any, variables: Any, axes: Any) -> list[Value]:
    """The values, each with the facts of its like and no others."""
    return [
        _with(like, None if like.x is None else run.whole(value, var, of_value))
        for like, value, var, of_value in zip(likes, values, variables, axes, strict=True)
    ]


def _scan(run: Any, step: Step, operands: list[Value]) -> list[Value]:
    params, (body,) = step.eqn.params, step.inner
    consts, carry, xs = scan_parts(step.eqn, operands)
    first, last = len(consts), len(consts) + len(carry)
    conform = lambda likes, values: _conform(
        run, likes, values, body.jaxpr.invars[first:last], body.in_axes[first:last]
    )

    def turn(carry: Any, xs: Any) -> tuple[Any, Any]:
        results = run.run(body, [*consts, *carry, *xs])
        return conform(carry, results[: len(carry)]), results[len(carry) :]

    def after(carry: Any, xs: Any) -> Any:
        return run.run(body, [*consts, *carry, *xs])[: len(carry)]

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    carry = conform(_settled(after, carry, one), carry)
    how = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(turn, carry, xs, **how)
    return [*carry, *ys]


def _settled(after: Callable[..., Any], carry: list[Value], *rest: Any) -> list[Value]:
    """The facts about a carry that are true in every turn: followed round until they settle."""
    while True:
        pairs = zip(carry, _shapes(after, carry, *rest), strict=True)
        new = [_weaker(a, b) for a, b in pairs]
        if list(map(_known, new)) == list(map(_known, carry)):
            return carry
        carry = new


def _while(run: Any, step: Step, operands: list[Value]) -> list[Value]:
    condition, body = step.inner
    of_condition, consts, carry = while_parts(step.eqn, operands)
    conform = lambda likes, values: _conform(run, likes, values, step.eqn.outvars, step.outputs)
    after = lambda carry: run.run(body, [*consts, *carry])
    test = lambda carry: run.run(condition, [*of_condition, *carry])[0]

    likes = _settled(after, carry)
    likes = _depending(likes) if _shapes(test, likes).depends else likes
    return lax.while_loop(
        lambda carry: run.whole(test(carry), condition.jaxpr.outvars[0], ()),
        lambda carry: conform(carry, after(carry)),
        conform(likes, carry),
    )


def _cond(run: Any, step: Step, operands: list[Value]) -> list[Value]:
    index, *rest = operands
    ways = [_shapes(lambda *xs, way=way: run.run(way, xs), *rest) for way in step.inner]
    likes = [reduce(_weaker, each) for each in zip(*ways, strict=True)]
    likes = _depending(likes) if index.depends else likes

    def branch(way: Program) -> Callable[..., Any]:
        return lambda *xs: _conform(run, likes, run.run(way, xs), step.eqn.outvars, step.outputs)

    at = run.whole(index, step.eqn.invars[0], step.inputs[0])
    return lax.switch(at, [branch(way) for way in step.inner], *rest)


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
