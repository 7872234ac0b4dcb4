"""Runs a program that was read on smaller arrays: the same equations, with sizes computed anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import is_known
from jaxprune.coupling.expressions import Atom, Axes, Expr, kept_entries, resolved, size
from jaxprune.coupling.reader import Program, Step, axes_rule
from jaxprune.programs.interpret import bind, walk
from jaxprune.programs.primitives import Rule


class Keep:
    """Which neurons are left, and what that makes of axes, shapes, arrays and programs."""

    def __init__(self, kept: Mapping[Atom, np.ndarray]):
        self.kept = kept
        self._known: dict[Expr, np.ndarray] = {}

    def of(self, axis: Expr) -> np.ndarray:
        """Bool (size,): which entries of the axis are left."""
        axis = resolved(axis)
        if axis not in self._known:
            self._known[axis] = np.asarray(kept_entries(axis, self.kept))
        return self._known[axis]

    def size(self, axis: Expr) -> Any:
        """How many entries are left: an int, or symbolic where the size of the axis is."""
        left = lambda atom: int(self.kept[atom].sum()) if atom in self.kept else atom.size
        return size(resolved(axis), left)

    def before(self, axis: Expr, at: Any) -> Any:
        """How many of the first `at` entries are left."""
        if self.size(axis) == size(axis):
            return at
        return self.size(axis) if at == size(axis) else int(self.of(axis)[:at].sum())

    def shape(self, axes: Axes) -> tuple[int, ...]:
        """The shape of a value with these axes."""
        return tuple(map(self.size, axes))

    def take(self, x: Any, axes: Axes) -> Any:
        """What is left of an array; numpy or jax, like it."""
        gone = [i for i, axis in enumerate(axes) if self.size(axis) != size(axis)]
        if not gone:
            return x
        # by numpy where values are known: each shape would be compiled anew
        xp = np if is_known(x) else jnp
        small = x if xp is jnp else np.asarray(x)
        for i in gone:
            small = xp.take(small, np.flatnonzero(self.of(axes[i])), axis=i)
        return jnp.asarray(small) if isinstance(x, jax.Array) else small

    def run(self, program: Program, operands: Sequence[Any]) -> list[Any]:
        """The results of a program on arrays of which only these entries are left."""
        constant = lambda x, atom: self.constant(self.take(x, program.constants[id(atom)]))
        return walk(program, operands, self.step, constant, program.steps)

    def constant(self, x: Any) -> Any:
        """A constant as the operand of a step."""
        return x

    def step(self, step: Step, operands: Sequence[Any]) -> Sequence[Any]:
        """The results of an equation."""
        rule = axes_rule(step.eqn) or Rule()
        if rule.replay is not None:
            return rule.replay(step, self, operands)
        return bind(step.eqn, operands, **(rule.resize(step, self) if rule.resize else {}))
