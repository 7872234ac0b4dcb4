"""Zeros followed through an optimizer's program: which results are zero where weights are pruned.

An optimizer that reads only zeros at a pruned weight mostly writes only zeros there: a moment is a
sum of products. Where that can be proven, the new state need not be masked again. On CPU masking
would cost three times the optimizer's step: the update and the masked moment would both read the
old moment, so that it could not be overwritten in place.

At a pruned weight an optimizer computes with known numbers: `g / (sqrt(v) + eps)` is 0 / eps. In
float16 an eps of 1e-8 is 0, and 0 / 0 is nan: a nan would stay in a moment until the weight grows,
and through a norm over all weights it would reach the others at once. So where a product or a
quotient of zero may be nan, `run` computes it with 1 in place of the other operand at pruned
weights: the result is zero, and no nan was computed. At weights that are kept nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from jaxprune.programs.interpret import bind, enter, programs, walk
from jaxprune.programs.primitives import is_zero, known_number, number_of, rule_of, zero_like

_MOVES = {"expand_dims", "reshape", "squeeze", "transpose"}
_NOT_ENTERED = {"scan", "while", "shard_map"}  # a turn, or a device, has other entries


class _Fact(NamedTuple):
    """What is known of a value at the pruned weights of one leaf.

    Attributes:
      leaf: the number of the leaf; None of a value that goes with no leaf, or with several.
      number: the value there, a numpy scalar; None if not known.
      everywhere: whether the value is the same number at kept weights, such as a rate or a norm.
    """

    leaf: int | None = None
    number: Any = None
    everywhere: bool = False

    @property
    def is_zero(self) -> bool:
        return self.number is not None and bool(self.number == 0)


# How the zeros of an equation stay, by its place: (a leaf, the operand that is 1 where the leaf is
# pruned), or the plans of the programs that it holds. Most equations have none.
_Plan = dict[int, Any]


class Flow(NamedTuple):
    """A function's program, and what becomes of zeros in it.

    Attributes:
      closed: its jaxpr.
      results: the structure of what it returns.
      zero: for each leaf of that, of which leaf it is zero at the pruned weights; else None.
      plan: where an operand must be 1 for that to be true; empty for most functions.
    """

    closed: ClosedJaxpr
    results: Any
    zero: list[int | None]
    plan: _Plan


def follow(f: Callable[..., Any], leaf_of: Sequence[int | None], *args: Any) -> Flow:
    """Follows zeros through `f(*args)`: traced, not run.

    Args:
      f: elementwise where it matters.
      leaf_of: for each leaf of `args`, where it is zero: at the pruned weights of this leaf. None
        where nothing is known of it.
      *args: pytrees of arrays.

    A scalar that multiplies or divides is taken to be finite and not zero: were it not, it would
    spoil the weights that are kept too, with or without masks.
    """
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    facts = [_fact(var.aval, leaf) for var, leaf in zip(closed.jaxpr.invars, leaf_of, strict=True)]
    results, plan = _follow(closed, facts)
    zero = [fact.leaf if fact.is_zero else None for fact in results]
    return Flow(closed, jax.tree.structure(shapes), zero, plan)


def run(flow: Flow, masks: Sequence[Any], *args: Any) -> Any:
    """`f(*args)`, in which zeros stay zero as `flow.zero` says; `masks` by leaf, bool."""
    leaves = _run(flow.closed, flow.plan, dict(enumerate(masks)), jax.tree.leaves(args))
    return jax.tree.unflatten(flow.results, leaves)


def _fact(aval: Any, leaf: int | None) -> _Fact:
    if getattr(aval, "shape", None) == ():  # a weight that is a scalar is never proven to be zero
        return _Fact(everywhere=leaf is None)
    return _Fact() if leaf is None else _Fact(leaf, np.zeros((), aval.dtype))


def _constant(x: Any, atom: Any) -> _Fact:
    number = known_number(x, atom.aval)
    return _Fact(None, number, everywhere=number is not None or np.shape(x) == ())


def _follow(closed: ClosedJaxpr, facts: Sequence[_Fact]) -> tuple[list[_Fact], _Plan]:
    plan: _Plan = {}

    def equation(step: tuple[int, Any], facts: list[_Fact]) -> list[_Fact]:
        place, eqn = step
        results, how = _outcome(eqn, facts)
        if how is not None:
            plan[place] = how
        return results

    return walk(closed, facts, equation, _constant, enumerate(closed.jaxpr.eqns)), plan


def _outcome(eqn: Any, facts: list[_Fact]) -> tuple[list[_Fact], Any]:
    """Facts about each result of an equation, and its part of the plan, if it has any."""
    kind, out = eqn.primitive.name, [var.aval for var in eqn.outvars]
    inner = [] if kind in _NOT_ENTERED else programs(eqn)
    if inner:
        plans: list[_Plan] = []

        def run(program: ClosedJaxpr, facts: list[_Fact]) -> list[_Fact]:
            results, plan = _follow(program, facts)
            plans.append(plan)
            return results

        results = enter(eqn, inner, facts, run, _either)
        return results, plans if any(plans) else None
    if kind == "optimization_barrier":
        return facts, None
    if rule_of(eqn).elementwise is not None:
        fact, leaf = _elementwise(eqn, kind, facts)
        return [fact], leaf
    everywhere = all(fact.everywhere for fact in facts)
    if kind in _MOVES and everywhere:
        return facts, None
    if kind == "broadcast_in_dim":  # an axis that moves is no proof
        is_same = eqn.invars[0].aval.shape == out[0].shape
        return [facts[0] if everywhere or is_same else _Fact()], None
    return [_Fact(everywhere=getattr(aval, "shape", None) == ()) for aval in out], None


def _elementwise(eqn: Any, kind: str, facts: list[_Fact]) -> tuple[_Fact, tuple[int, int] | None]:
    leaves = {fact.leaf for fact in facts} - {None}
    leaf = leaves.pop() if leaves else None
    if leaves:  # of two leaves of one shape
        return _Fact(), None
    everywhere = all(fact.everywhere for fact in facts)
    if kind == "select_n" and facts[0].number is not None:
        return facts[1 + int(facts[0].number)]._replace(leaf=leaf, everywhere=everywhere), None
    numbers = [fact.number for fact in facts]
    number = number_of(eqn, numbers)
    if number is not None:
        return _Fact(leaf, number, everywhere), None
    if not is_zero(eqn, numbers):
        return _Fact(everywhere=everywhere), None
    zero = _Fact(leaf, zero_like(eqn.outvars[0].aval), everywhere)
    if rule_of(eqn).zeros not in ("any", "first"):
        return zero, None
    if leaf is None or len(facts) != 2:
        return _Fact(everywhere=everywhere), None
    other = 1 if facts[0].is_zero else 0
    return zero, None if facts[other].everywhere else (leaf, other)


def _either(facts: Sequence[_Fact]) -> _Fact:
    first = facts[0]
    if all(fact == first for fact in facts) and first.number is not None:
        return first
    if all(fact.is_zero and fact.leaf == first.leaf for fact in facts):
        return first
    return _Fact(everywhere=all(fact.everywhere for fact in facts))


def _run(closed: ClosedJaxpr, plan: _Plan, masks: dict[int, Any], args: Sequence[Any]) -> list[Any]:
    def equation(step: tuple[int, Any], operands: list[Any]) -> list[Any]:
        place, eqn = step
        how = plan.get(place)
        if isinstance(how, tuple):
            leaf, other = how
            one = jnp.ones((), operands[other].dtype)
            operands[other] = jnp.where(masks[leaf], operands[other], one)
        if how is None or isinstance(how, tuple):
            return bind(eqn, operands)
        ways = [
            lambda masks, *xs, program=program, plan=inner: _run(program, plan, masks, xs)
            for program, inner in zip(programs(eqn), how, strict=True)
        ]
        if eqn.primitive.name == "cond":
            return jax.lax.switch(operands[0], ways, masks, *operands[1:])
        return ways[0](masks, *operands)

    return walk(closed, args, equation, lambda x, atom: x, enumerate(closed.jaxpr.eqns))
