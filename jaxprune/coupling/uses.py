"""What products do with axes: which they sum over, which are left, and which are heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jaxprune.coupling.expressions import Atom, Axes, Expr, Prod, Sum, atoms
from jaxprune.coupling.reader import Program, Step
from jaxprune.programs.interpret import enter, walk
from jaxprune.programs.primitives import Side, sides

Origin = frozenset[str] | None  # the leaves that a value was computed from; None for an input too
_CONSTANT: Origin = frozenset()


class Uses:
    """How the products of a program use the axes of its leaves, and neurons.

    Attributes:
      left, summed: the axes of leaves that are left in products, and those that products sum over:
        the axis itself (by its `id`, which tells the two sides of a square kernel apart), and
        (path, atom), for leaves that were reshaped on the way.
      heads: for each product of two values that are both computed from inputs (queries and keys,
        attention and values) the atoms along which it is taken side by side.
      dims: atoms over which such a product sums: the dimensions of queries and keys.
      queries: atoms that two or more such products leave as they are: queries that share a head of
        keys, where the program repeats no keys.
    """

    def __init__(self, program: Program, paths: Sequence[str]):
        self.left: set[Any] = set()
        self.summed: set[Any] = set()
        self.heads: list[tuple[Atom, ...]] = []
        self.dims: dict[Atom, None] = {}
        self.queries: dict[Atom, None] = {}
        self._left_once: set[Atom] = set()
        leaves: list[Origin] = [frozenset({path}) for path in paths]
        self._run(program, [*leaves, *[None] * (len(program.in_axes) - len(leaves))])

    def makes(self, path: str, axis: Expr, atom: Atom) -> bool:
        """Whether a product has this axis of the leaf as an output, and none sums over it."""
        key = id(axis) if id(axis) in self.left | self.summed else (path, atom)
        return key in self.left and key not in self.summed

    def _run(self, program: Program, inputs: Sequence[Origin]) -> list[Origin]:
        return walk(program, inputs, self._step, lambda x, atom: _CONSTANT, program.steps)

    def _step(self, step: Step, operands: list[Origin]) -> list[Origin]:
        if step.inner:
            return enter(step.eqn, step.inner, operands, self._run, _joined)
        product = sides(step.eqn)
        if product is not None:
            self._attention(step, operands, product)
            for leaves, axes, side in zip(operands, step.inputs, product, strict=False):
                used = (*side.contracted, *side.batch, *side.window)
                left = tuple(axis for i, axis in enumerate(axes) if i not in used)
                self._note(leaves, left, tuple(axes[i] for i in side.contracted))
        if step.eqn.primitive.name == "gather":
            window = set(map(id, step.inputs[0]))
            self._note(operands[0], tuple(e for e in step.outputs[0] if id(e) in window), ())
        return [_joined(operands)] * len(step.outputs)

    def _note(self, leaves: Origin, left: Axes, summed: Axes) -> None:
        for found, axes in ((self.left, left), (self.summed, summed)) if leaves else ():
            found.update(id(part) for e in axes for part in _parts(e))
            found.update((path, atom) for path in leaves or () for e in axes for atom in atoms(e))

    def _attention(self, step: Step, operands: list[Origin], product: Sequence[Side]) -> None:
        """Notes the axes of a product of two values that read inputs."""
        if operands != [None, None] or product[0].window:
            return
        on = lambda axes: tuple(a for i in axes for a in atoms(step.inputs[0][i]))
        self.heads.append(on(product[0].batch))
        self.dims |= dict.fromkeys(on(product[0].contracted))
        left = {
            atom
            for axes, side in zip(step.inputs, product, strict=False)
            for i, axis in enumerate(axes)
            if i not in (*side.batch, *side.contracted)
            for atom in atoms(axis)
        }
        self.queries |= dict.fromkeys(left & self._left_once)
        self._left_once |= left


def _parts(e: Expr) -> Iterator[Expr]:
    """The axis, and those that it was put together from: kernels are concatenated, or reshaped."""
    yield e
    for part in e.parts if isinstance(e, Sum) else e.factors if isinstance(e, Prod) else ():
        yield from _parts(part)


def _joined(origins: Sequence[Origin]) -> Origin:
    return None if None in origins else frozenset[str]().union(*(o for o in origins if o))
