"""Programs in programs, run on `Value`s: calls, loops, branches, derivatives.

`run` is the `Simplify` that runs the program around them. What is known of a carry must hold in
every turn, and of a result in every branch: what they differ in is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
from jax import lax

from jaxprune.coupling.expressions import Axes
from jaxprune.coupling.reader import Program, Step, by_its_jaxpr
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.rules.registry import RULES
from jaxprune.coupling.zeros import Value
from jaxprune.programs.jaxprs import scan_ends


def inner(run: Any, step: Step, operands: list[Value]) -> list[Value]:
    """The results of an equation that holds programs."""
    kind = step.eqn.primitive.name
    rule = RULES.get(kind) or by_its_jaxpr(step.eqn)
    if kind in _LOOPS:
        return _LOOPS[kind](run, step, operands)
    if rule in (RULES["closed_call"], RULES["remat"]):
        return list(rule.replay(step, run, operands))  # type: ignore[misc]
    # a derivative of its own, or a rule of the user's: on arrays, if anything is left to compute
    if kind.startswith("custom_"):
        results = _shapes(lambda *xs: run.run(step.inner[0], xs), *operands)
    else:
        depends = any(value.depends for value in operands)
        severed = not depends and any(value.severed for value in operands)
        results = [Value(0.0, depends, severed)] * len(step.outputs)
    if all(value.x is None for value in results):
        return results
    arrays = map(run.whole, operands, step.eqn.invars, step.inputs)
    xs = Keep(run.kept)._step(step, list(arrays))
    pairs = zip(results, xs, strict=True)
    return [value if value.x is None else _with(value, x) for value, x in pairs]


def _shapes(f: Callable[..., Any], *operands: Any) -> Any:
    return jax.eval_shape(f, *operands)


def _with(value: Value, x: Any) -> Value:
    return Value(x, value.depends, value.severed)


def _weaker(a: Value, b: Value) -> Value:
    """What is known of a value that may be either; its x is None, or not."""
    x = a.x if b.x is None else b.x
    depends = a.depends or b.depends
    return Value(x, depends, not depends and (a.severed or b.severed))


def _known(value: Value) -> tuple[bool, bool, bool]:
    return value.x is None, value.depends, value.severed


def _depending(values: list[Value]) -> list[Value]:
    """As they are if an input says which of several they are."""
    return [value if value.x is None else Value(value.x, True) for value in values]


def _as(run: Any, like: Value, value: Value, var: Any, axes: Axes) -> Value:
    """`value`, of which no more is known than of `like`."""
    return _with(like, None if like.x is None else run.whole(value, var, axes))


def _conform(run: Any, likes: Any, values: Any, variables: Any, axes: Any) -> list[Value]:
    every = zip(likes, values, variables, axes, strict=True)
    return [_as(run, *each) for each in every]


def _scan(run: Any, step: Step, operands: list[Value]) -> list[Value]:
    params, (body,) = step.eqn.params, step.inner
    first, last = scan_ends(params)
    consts, carry, xs = operands[:first], operands[first:last], operands[last:]
    conform = lambda likes, values: _conform(
        run, likes, values, body.jaxpr.invars[first:last], body.in_axes[first:last]
    )

    def turn(carry: Any, xs: Any) -> tuple[Any, Any]:
        results = run.run(body, [*consts, *carry, *xs])
        return conform(carry, results[: last - first]), results[last - first :]

    def after(carry: Any, xs: Any) -> Any:
        return run.run(body, [*consts, *carry, *xs])[: last - first]

    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), xs)
    carry = conform(_settled(after, carry, one), carry)
    how = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(turn, carry, xs, **how)
    return [*carry, *ys]


def _settled(after: Callable[..., Any], carry: list[Value], *rest: Any) -> list[Value]:
    """What is known of a carry in every turn: followed round until it settles."""
    while True:
        pairs = zip(carry, _shapes(after, carry, *rest), strict=True)
        new = [_weaker(a, b) for a, b in pairs]
        if list(map(_known, new)) == list(map(_known, carry)):
            return carry
        carry = new


def _while(run: Any, step: Step, operands: list[Value]) -> list[Value]:
    params, (condition, body) = step.eqn.params, step.inner
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    carry = operands[last:]
    conform = lambda likes, values: _conform(run, likes, values, step.eqn.outvars, step.outputs)
    after = lambda carry: run.run(body, [*operands[first:last], *carry])
    test = lambda carry: run.run(condition, [*operands[:first], *carry])[0]

    likes = _settled(after, carry)
    likes = _depending(likes) if _shapes(test, likes).depends else likes
    return lax.while_loop(
        lambda carry: run.whole(test(carry), condition.jaxpr.outvars[0], ()),
        lambda carry: conform(carry, after(carry)),
        conform(likes, carry),
    )


def _cond(run: Any, step: Step, operands: list[Value]) -> list[Value]:
    index, *rest = operands
    ways = [_shapes(lambda *xs, own=own: run.run(own, xs), *rest) for own in step.inner]
    likes = [reduce(_weaker, own) for own in zip(*ways, strict=True)]
    likes = _depending(likes) if index.depends else likes

    def branch(own: Program) -> Callable[..., Any]:
        return lambda *xs: _conform(run, likes, run.run(own, xs), step.eqn.outvars, step.outputs)

    at = run.whole(index, step.eqn.invars[0], step.inputs[0])
    return lax.switch(at, [branch(own) for own in step.inner], *rest)


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
