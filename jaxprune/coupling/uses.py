"""What products do with axes: which they sum over, which are left, and which are heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import Literal

from jaxprune.coupling.exactness import PRODUCTS
from jaxprune.coupling.expressions import Atom, Axes, Expr, Prod, Sum, atoms
from jaxprune.coupling.facts import through
from jaxprune.coupling.reader import Program, Step
from jaxprune.programs.jaxprs import dot_numbers

Origin = frozenset[str] | None  # the leaves that a value was computed from; None for an input too


class Uses:
    """How the products of a program use the axes of its leaves, and neurons.

    Attributes:
      left, summed: what is left of leaves in products, and what these sum over: the axis itself (by
        its `id`, which tells the two sides of a square kernel apart), and (path, atom), for
        leaves that were reshaped on the way.
      heads: for each product of two values that are both computed from inputs (queries and keys,
        attention and values) the atoms along which it is taken side by side.
      dims: atoms over which such a product sums: those of queries and keys.
    """

    def __init__(self, program: Program, paths: Sequence[str]):
        self.left: set[Any] = set()
        self.summed: set[Any] = set()
        self.heads: list[tuple[Atom, ...]] = []
        self.dims: dict[Atom, None] = {}
        leaves: list[Origin] = [frozenset({path}) for path in paths]
        self.run(program, [*leaves, *[None] * (len(program.in_axes) - len(leaves))])

    def makes(self, path: str, axis: Expr, atom: Atom) -> bool:
        """Whether a product has this axis of the leaf as an output, and none sums over it."""
        key = id(axis) if id(axis) in self.left | self.summed else (path, atom)
        return key in self.left and key not in self.summed

    def note(self, leaves: Origin, left: Axes, summed: Axes) -> None:
        for found, axes in ((self.left, left), (self.summed, summed)):
            found.update(id(part) for e in axes for part in _parts(e))
            found.update((path, atom) for path in leaves or () for e in axes for atom in atoms(e))

    def run(self, program: Program, inputs: Sequence[Origin]) -> list[Origin]:
        nothing: Origin = frozenset()
        known = dict.fromkeys(program.jaxpr.constvars, nothing)
        known |= dict(zip(program.jaxpr.invars, inputs, strict=True))
        origin = lambda var: nothing if isinstance(var, Literal) else known[var]
        for step in program.steps:
            operands = [origin(var) for var in step.eqn.invars]
            known |= dict(zip(step.eqn.outvars, self.step(step, operands), strict=True))
        return [origin(var) for var in program.jaxpr.outvars]

    def step(self, step: Step, operands: list[Origin]) -> list[Origin]:
        if step.inner:
            return through(step, operands, self.run, _joined)
        kind = step.eqn.primitive.name
        if kind in PRODUCTS:
            self.attention(step, operands)
            for leaves, *sides in zip(operands[:2], *_sides(step), strict=True):
                if leaves:
                    self.note(leaves, *sides)
        if kind == "gather" and operands[0]:
            window = set(map(id, step.inputs[0]))
            self.note(operands[0], tuple(e for e in step.outputs[0] if id(e) in window), ())
        return [_joined(operands)] * len(step.outputs)

    def attention(self, step: Step, operands: list[Origin]) -> None:
        """Notes the batch and the contracted axes of a product of two values that read inputs."""
        if operands[0] is not None or operands[1] is not None or step.inputs[2:]:
            return
        if step.eqn.primitive.name == "dot_general":
            (contracted, _), (batch, _) = dot_numbers(step.eqn)
            on = lambda axes: tuple(a for i in axes for a in atoms(step.inputs[0][i]))
            self.heads.append(on(batch))
            self.dims |= dict.fromkeys(on(contracted))


def _parts(e: Expr) -> Iterator[Expr]:
    """The axis, and those that it was put together from: kernels are concatenated, or reshaped."""
    yield e
    for part in e.parts if isinstance(e, Sum) else e.factors if isinstance(e, Prod) else ():
        yield from _parts(part)


def _joined(origins: Sequence[Origin]) -> Origin:
    return None if None in origins else frozenset[str]().union(*(o for o in origins if o))


def _sides(step: Step) -> tuple[list[Axes], list[Axes]]:
    """What is left of either operand of a product, and what is summed over."""
    params, (lhs, rhs, *_) = step.eqn.params, step.inputs
    if step.eqn.primitive.name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        (n, c, *_), (o, i, *_) = numbers.lhs_spec, numbers.rhs_spec
        return [(lhs[n],), (rhs[o],)], [(lhs[c],), (rhs[i],)]
    contracted, batch = dot_numbers(step.eqn)
    ragged = params.get("ragged_dot_dimension_numbers")
    experts = () if ragged is None else tuple(ragged.rhs_group_dimensions)
    used = [{*contracted[0], *batch[0]}, {*contracted[1], *batch[1], *experts}]
    left = [
        tuple(axis for i, axis in enumerate(axes) if i not in gone)
        for axes, gone in zip((lhs, rhs), used, strict=True)
    ]
    summed = [
        tuple(axes[i] for i in gone) for axes, gone in zip((lhs, rhs), contracted, strict=True)
    ]
    return left, summed
