"""Reads a jaxpr: which axes of its values are the same neurons.

Each value has an axis expression for each of its axes; each equation, by the rule of its
primitive, says which of these are the same and which can't be pruned. What is not known freezes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params

from jaxprune.coupling import expressions
from jaxprune.coupling.expressions import Atom, Axes, Expr
from jaxprune.coupling.rules.registry import RULES


@dataclass
class Step:
    """An equation as it was read.

    Attributes:
      eqn: of the jaxpr.
      inputs, outputs: the axes of its operands and results.
      line: `"at net.py:12 (__call__)"`, where the user's program has it.
      inner: the jaxprs that it holds, as they were read, in the order in which its rule did so.
    """

    eqn: Any
    inputs: list[Axes]
    line: str
    outputs: list[Axes] = field(default_factory=list)
    inner: list[Program] = field(default_factory=list)


@dataclass
class Program:
    """A jaxpr as it was read, with the axes of its constants, inputs and outputs."""

    jaxpr: Jaxpr
    consts: Sequence[Any]
    const_axes: list[Axes]
    in_axes: list[Axes]
    out_axes: list[Axes]
    steps: list[Step]


class Reader:
    """Reads one function. Rules call its methods.

    Attributes:
      first_use: for the axes of each value (by `id`), the place of the first equation that reads
        it, calls looked through: the order of the data.
      unknown: primitives without a rule, and where they were met.
      in_derivative: whether what is read is the derivative of a function, and not it.
    """

    def __init__(self) -> None:
        self.first_use: dict[int, int] = {}
        self.unknown: dict[str, str] = {}
        self.in_derivative = False
        self._whole: dict[int, int] = {}
        self._kept_alive: list[Axes] = []  # an id is one only as long as what has it
        self._steps: list[Step] = []

    # --- what rules say ---------------------------------------------------------------------------

    def fresh(self, size: int) -> Expr:
        """An axis of which nothing is known yet."""
        return Atom(size)

    def frozen(self, size: int, why: str) -> Expr:
        """An axis that can't be pruned."""
        return Atom(size, why)

    def freeze(self, axis: Expr, why: str) -> None:
        """None of the entries of `axis` may be pruned."""
        expressions.freeze(axis, why)

    def freeze_all(self, eqn: Any, operands: Sequence[Axes], why: str) -> list[Axes]:
        """Freezes every axis of the operands, and gives results with frozen axes."""
        why = self.here(why)
        for axes in operands:
            for axis in axes:
                self.freeze(axis, why)
        return [tuple(self.frozen(n, why) for n in _shape(var)) for var in eqn.outvars]

    def unify(self, a: Expr, b: Expr, why: str | None = None) -> None:
        """`a` and `b` are the same axis; where they can't be, both are frozen."""
        kind = self._steps[-1].eqn.primitive.name
        why = why or f"{kind} of two axes of {expressions.size(a)} that are cut differently"
        expressions.unify(a, b, self.here(why))

    def inner(self, jaxpr: Any, operands: Sequence[Axes]) -> list[Axes]:
        """Reads a jaxpr that the equation holds; the axes of its results."""
        program = self.read(jaxpr, operands)
        self._steps[-1].inner.append(program)
        return program.out_axes

    def one_of(self, axes: Axes) -> Axes:
        """The axes of one of the arrays that are stacked along the first axis, as a scan reads."""
        own = axes[1:]  # a tuple of its own, known by its id
        self._whole[id(own)] = self._whole.get(id(axes), id(axes))
        self._kept_alive.append(own)
        return own

    def here(self, why: str) -> str:
        """`why`, and the line of the program that is being read."""
        return f"{why}, {self._steps[-1].line}"

    # --- reading ----------------------------------------------------------------------------------

    def read(self, jaxpr: Any, operands: Sequence[Axes]) -> Program:
        """Reads a jaxpr, given the axes of its inputs."""
        consts = jaxpr.consts if isinstance(jaxpr, ClosedJaxpr) else ()
        jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
        const_axes = [_fresh(var) for var in jaxpr.constvars]
        axes: dict[Any, Axes] = dict(zip(jaxpr.constvars, const_axes, strict=True))
        axes |= dict(zip(jaxpr.invars, operands, strict=True))

        def of(var: Any) -> Axes:
            return _fresh(var) if isinstance(var, Literal) else axes[var]

        steps = []
        for eqn in jaxpr.eqns:
            steps.append(self._step(eqn, [of(var) for var in eqn.invars]))
            axes |= dict(zip(eqn.outvars, steps[-1].outputs, strict=True))
        out_axes = [of(var) for var in jaxpr.outvars]
        return Program(jaxpr, consts, const_axes, list(operands), out_axes, steps)

    def _step(self, eqn: Any, operands: list[Axes]) -> Step:
        step = Step(eqn, operands, _line(eqn) or (self._steps[-1].line if self._steps else ""))
        self._steps.append(step)
        rule = RULES.get(eqn.primitive.name) or by_its_jaxpr(eqn)
        if rule is None or not held(eqn):
            for axes in operands:
                whole = self._whole.get(id(axes), id(axes))
                self.first_use.setdefault(whole, len(self.first_use))
        step.outputs = self._unknown(eqn, operands) if rule is None else self._known(rule, step)
        self._steps.pop()
        return step

    def _known(self, rule: Any, step: Step) -> list[Axes]:
        outputs = [tuple(axes) for axes in rule.axes(self, step.eqn, step.inputs)]
        for axes, var in zip(outputs, step.eqn.outvars, strict=True):
            sizes = tuple(map(expressions.size, axes))
            if sizes != _shape(var):
                raise ValueError(
                    f"the rule of '{step.eqn.primitive.name}' gave axes of sizes {sizes} for a "
                    f"result of shape {_shape(var)}: correct what was given to register_rule."
                )
        return outputs

    def _unknown(self, eqn: Any, operands: list[Axes]) -> list[Axes]:
        kind = eqn.primitive.name
        self.unknown.setdefault(kind, self._steps[-1].line)
        return self.freeze_all(eqn, operands, f"read by '{kind}', which has no rule")


def _line(eqn: Any) -> str:
    place = source_info_util.summarize(eqn.source_info)
    path, colon, line = place.partition(":")
    return f"at {path.rsplit('/', 1)[-1]}:{line}" if colon else ""


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))  # a token has none


def _fresh(var: Any) -> Axes:
    return tuple(map(Atom, _shape(var)))


def held(eqn: Any) -> list[Any]:
    """The jaxprs that an equation holds."""
    return [p for p in eqn.params.values() if isinstance(p, (Jaxpr, ClosedJaxpr))] or list(
        jaxprs_in_params(eqn.params)
    )


def by_its_jaxpr(eqn: Any) -> Any:
    """The rule of calls, for a primitive that holds one jaxpr of just its operands and results."""
    inner = held(eqn)
    if len(inner) != 1:
        return None
    jaxpr = getattr(inner[0], "jaxpr", inner[0])
    same = [
        [(v.aval.shape, v.aval.dtype) if hasattr(v.aval, "shape") else v.aval for v in vs]
        for vs in (eqn.invars, jaxpr.invars, eqn.outvars, jaxpr.outvars)
    ]
    return RULES["closed_call"] if same[0] == same[1] and same[2] == same[3] else None
