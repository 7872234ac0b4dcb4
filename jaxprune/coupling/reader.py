"""Reads a jaxpr: which axes of its values are the same neurons.

Each value has an axis expression for each of its axes; each equation, by the rule of its
primitive, says which of these are the same and which can't be pruned. Unknown axes freeze.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxprune.coupling import expressions
from jaxprune.coupling.expressions import Atom, Axes, Expr
from jaxprune.programs.interpret import held, programs, walk
from jaxprune.programs.primitives import RULES, Rule


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
    """A jaxpr as it was read, with the axes of its inputs and outputs.

    Attributes:
      constants: the axes of each constant, by `id` of the variable or literal in the jaxpr.
    """

    jaxpr: Jaxpr
    consts: Sequence[Any]
    constants: dict[int, Axes]
    in_axes: list[Axes]
    out_axes: list[Axes]
    steps: list[Step]


class Reader:
    """Reads one function. Rules call its methods.

    Attributes:
      first_use: for the axes of each value (by `id`), the place of the first equation that reads
        it, calls looked through: the order of the data.
      unknown: primitives without a rule, and where they were met.
      in_derivative: whether the program that is read is the derivative of a function.
    """

    def __init__(self) -> None:
        self.first_use: dict[int, int] = {}
        self.unknown: dict[str, str] = {}
        self.in_derivative = False
        self._stack_of: dict[int, int] = {}
        self._alive: list[Axes] = []  # an id is unique only as long as its object is there
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

    def unify_all(self, first: Axes, *others: Axes) -> None:
        """The axes of these values are the same, place by place."""
        for axes in others:
            for axis, other in zip(first, axes, strict=True):
                self.unify(axis, other)

    def inner(self, jaxpr: Any, operands: Sequence[Axes]) -> list[Axes]:
        """Reads a jaxpr that the equation holds; the axes of its results."""
        program = self.read(jaxpr, operands)
        self._steps[-1].inner.append(program)
        return program.out_axes

    def one_of(self, axes: Axes) -> Axes:
        """The axes of one of the arrays that are stacked along the first axis, as a scan reads."""
        one = axes[1:]  # a new tuple, known by its id
        self._stack_of[id(one)] = self._stack_of.get(id(axes), id(axes))
        self._alive.append(one)
        return one

    def here(self, why: str) -> str:
        """`why`, and the line of the program that is being read."""
        return f"{why}, {self._steps[-1].line}"

    # --- reading ----------------------------------------------------------------------------------

    def read(self, jaxpr: Any, operands: Sequence[Axes]) -> Program:
        """Reads a jaxpr, given the axes of its inputs."""
        closed = jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())
        constants: dict[int, Axes] = {}
        steps: list[Step] = []

        def constant(x: Any, atom: Any) -> Axes:
            return constants.setdefault(id(atom), tuple(map(Atom, _shape(atom))))

        def equation(eqn: Any, operands: list[Axes]) -> list[Axes]:
            steps.append(self._step(eqn, operands))
            return steps[-1].outputs

        out_axes = walk(closed, operands, equation, constant)
        return Program(closed.jaxpr, closed.consts, constants, list(operands), out_axes, steps)

    def _step(self, eqn: Any, operands: list[Axes]) -> Step:
        step = Step(eqn, operands, _line(eqn) or (self._steps[-1].line if self._steps else ""))
        self._steps.append(step)
        rule = axes_rule(eqn)
        if rule is None or not held(eqn):
            for axes in operands:
                stack = self._stack_of.get(id(axes), id(axes))
                self.first_use.setdefault(stack, len(self.first_use))
        if rule is None:
            kind = eqn.primitive.name
            self.unknown.setdefault(kind, step.line)
            step.outputs = self.freeze_all(eqn, operands, f"read by '{kind}', which has no rule")
        else:
            step.outputs = [tuple(axes) for axes in rule.axes(self, eqn, operands)]  # type: ignore[misc]
            self._check(step)
        self._steps.pop()
        return step

    def _check(self, step: Step) -> None:
        for axes, var in zip(step.outputs, step.eqn.outvars, strict=True):
            sizes = tuple(map(expressions.size, axes))
            if sizes != _shape(var):
                raise ValueError(
                    f"the rule of '{step.eqn.primitive.name}' gave axes of sizes {sizes} for a "
                    f"result of shape {_shape(var)}: correct what was given to register_rule."
                )


def axes_rule(eqn: Any) -> Rule | None:
    """The rule of an equation: the rule of calls, where a primitive without one holds one jaxpr.

    Its inputs and results must have the shapes of the equation's.
    """
    rule = RULES.get(eqn.primitive.name)
    if rule is None and len(held(eqn)) == 1 and (inner := programs(eqn)):
        is_call = _avals(inner[0].jaxpr) == _avals(eqn)
        return RULES["closed_call"] if is_call else None
    return rule


def _avals(program: Any) -> Any:
    same = lambda aval: (aval.shape, aval.dtype) if hasattr(aval, "shape") else aval
    return [[same(atom.aval) for atom in atoms] for atoms in (program.invars, program.outvars)]


def _line(eqn: Any) -> str:
    place = source_info_util.summarize(eqn.source_info)
    path, colon, line = place.partition(":")
    return f"at {path.rsplit('/', 1)[-1]}:{line}" if colon else ""


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))  # a token has none
