"""Zeros followed through an optimizer's program: which results are zero where weights are pruned.

An optimizer that is given only zeros at a pruned weight mostly writes only zeros there: a moment
is a sum of products. Where that can be proven, its new state need not be masked again, which on
CPU would cost three times the optimizer's own step: the update and the masked moment would both
read the old moment, so that it could no longer be overwritten in place.

What an optimizer computes at a pruned weight is a number that can be known: `g / (sqrt(v) + eps)`
is 0 / eps there. In float16 an eps of 1e-8 is 0, and 0 / 0 is nan: it would stay in a moment until
the weight grows, and in a norm over all weights it would reach the others at once. So where a
product or quotient of zero may be nan, it is computed with 1 in place of the other operand at
pruned weights (`run`): it is zero, and no nan was computed. At weights that are kept nothing is
changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from jaxprune.base import is_known
from jaxprune.programs.elementwise import NUMBERS, number_of
from jaxprune.programs.jaxprs import bind

_SAME = {"copy", "copy_p", "optimization_barrier", "stop_gradient"}
_MOVES = {"expand_dims", "reshape", "squeeze", "transpose"}
_CALLS = {"closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat2"}


class _Fact(NamedTuple):
    """What is known of a value at the pruned weights of one leaf.

    Attributes:
      leaf: which; None of a value that is of no one leaf.
      number: what it is there, a numpy scalar; None if not known.
      everywhere: whether it is one number at kept weights too, such as a rate or a norm.
    """

    leaf: int | None = None
    number: Any = None
    everywhere: bool = False

    @property
    def is_zero(self) -> bool:
        return self.number is not None and bool(self.number == 0)


# Of each equation by its place how its zeros stay: (a leaf, which operand is to be 1 at its pruned
# weights), or the plans of the programs that it holds. Most have none.
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
    own = {leaf: mask for leaf, mask in enumerate(masks) if mask is not None}
    leaves = _run(flow.closed, flow.plan, own, jax.tree.leaves(args))
    return jax.tree.unflatten(flow.results, leaves)


def _fact(aval: Any, leaf: int | None) -> _Fact:
    if getattr(aval, "shape", None) == ():  # a weight that is a scalar is never proven to be zero
        return _Fact(everywhere=leaf is None)
    return _Fact() if leaf is None else _Fact(leaf, np.zeros((), aval.dtype))


def _constant(value: Any, aval: Any) -> _Fact:
    if is_known(value) and np.size(value) == 1 and _is_number(aval):
        return _Fact(None, np.asarray(value, aval.dtype).reshape(()), True)
    return _Fact(everywhere=np.shape(value) == ())


def _is_number(aval: Any) -> bool:
    return aval.dtype == np.bool_ or jnp.issubdtype(aval.dtype, np.number)


def _follow(closed: ClosedJaxpr, facts: Sequence[_Fact]) -> tuple[list[_Fact], _Plan]:
    jaxpr, plan = closed.jaxpr, {}
    known = dict(zip(jaxpr.invars, facts, strict=True))
    pairs = zip(jaxpr.constvars, closed.consts, strict=True)
    known |= {var: _constant(value, var.aval) for var, value in pairs}

    def of(atom: Any) -> _Fact:
        return _constant(atom.val, atom.aval) if isinstance(atom, Literal) else known[atom]

    for place, eqn in enumerate(jaxpr.eqns):
        results, how = _outcome(eqn, [of(atom) for atom in eqn.invars])
        known |= dict(zip(eqn.outvars, results, strict=True))
        if how is not None:
            plan[place] = how
    return [of(atom) for atom in jaxpr.outvars], plan


def _outcome(eqn: Any, facts: list[_Fact]) -> tuple[list[_Fact], Any]:
    """What is known of each result of an equation, and its part of the plan, if it has any."""
    kind, out = str(eqn.primitive), [var.aval for var in eqn.outvars]
    if kind in _SAME:
        return facts, None
    programs = _programs(eqn) if kind in _CALLS else []
    if len(programs) == 1 and len(programs[0].jaxpr.invars) == len(facts):
        results, plan = _follow(programs[0], facts)
        return results, [plan] if plan else None
    if kind == "cond":
        ways = [_follow(branch, facts[1:]) for branch in eqn.params["branches"]]
        results = [_either(own) for own in zip(*(results for results, _ in ways), strict=True)]
        plans = [plan for _, plan in ways]
        return results, plans if any(plans) else None
    if kind == "select_n" or kind in NUMBERS:
        fact, leaf = _elementwise(eqn, kind, facts, out[0].dtype)
        return [fact], leaf
    everywhere = all(fact.everywhere for fact in facts)
    if kind in _MOVES and everywhere:
        return facts, None
    if kind == "broadcast_in_dim":  # an axis that moves is no proof
        is_same = eqn.invars[0].aval.shape == out[0].shape
        return [facts[0] if everywhere or is_same else _Fact()], None
    return [_Fact(everywhere=getattr(aval, "shape", None) == ()) for aval in out], None


def _elementwise(
    eqn: Any, kind: str, facts: list[_Fact], dtype: Any
) -> tuple[_Fact, tuple[int, int] | None]:
    leaves = {fact.leaf for fact in facts} - {None}
    leaf = leaves.pop() if leaves else None
    if leaves:  # of two leaves of one shape
        return _Fact(), None
    everywhere = all(fact.everywhere for fact in facts)
    zero = _Fact(leaf, np.zeros((), dtype), everywhere)
    if kind == "select_n":
        which, *cases = facts
        if which.number is not None:
            return cases[int(which.number)]._replace(leaf=leaf, everywhere=everywhere), None
        same = all(case.is_zero for case in cases)
        return zero if same else _Fact(everywhere=everywhere), None
    is_zero = (kind == "mul" and any(fact.is_zero for fact in facts)) or (
        kind == "div" and facts[0].is_zero
    )
    if all(fact.number is not None for fact in facts):
        number = number_of(eqn, [fact.number for fact in facts])
        if number is not None or not is_zero:
            return _Fact(leaf, number, everywhere), None
    if not is_zero or leaf is None:
        return _Fact(everywhere=everywhere), None
    other = 1 if kind == "div" or facts[0].is_zero else 0
    return zero, None if facts[other].everywhere else (leaf, other)


def _either(facts: Sequence[_Fact]) -> _Fact:
    first = facts[0]
    if all(fact == first for fact in facts) and first.number is not None:
        return first
    if all(fact.is_zero and fact.leaf == first.leaf for fact in facts):
        return first
    return _Fact(everywhere=all(fact.everywhere for fact in facts))


def _programs(eqn: Any) -> list[ClosedJaxpr]:
    return [value for value in eqn.params.values() if isinstance(value, ClosedJaxpr)]


def _run(closed: ClosedJaxpr, plan: _Plan, masks: dict[int, Any], args: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.invars, args, strict=True))
    values |= dict(zip(jaxpr.constvars, closed.consts, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for place, eqn in enumerate(jaxpr.eqns):
        how, operands = plan.get(place), [read(atom) for atom in eqn.invars]
        if isinstance(how, tuple):
            leaf, other = how
            one = jnp.ones((), operands[other].dtype)
            operands[other] = jnp.where(masks[leaf], operands[other], one)
        if how is None or isinstance(how, tuple):
            results = bind(eqn, operands)
        elif str(eqn.primitive) == "cond":
            results = _run_branch(eqn, how, masks, operands)
        else:
            results = _run(_programs(eqn)[0], how[0], masks, operands)
        values |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run_branch(eqn: Any, plans: list[_Plan], masks: dict[int, Any], operands: list[Any]) -> Any:
    index, *rest = operands

    def way(branch: ClosedJaxpr, plan: _Plan) -> Callable[..., Any]:
        return lambda masks, *xs: _run(branch, plan, masks, xs)

    pairs = zip(eqn.params["branches"], plans, strict=True)
    return jax.lax.switch(index, [way(*pair) for pair in pairs], masks, *rest)
