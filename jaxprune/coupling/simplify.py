"""Runs a program without the parts that are zero.

A value that has no entries, or that is known to be zero, is not computed. A sum over an empty axis
is zero; zero goes through products, reshapes and all f with f(0) = 0; x + 0 is x. So a branch
without neurons disappears, and nothing reads the values that only this branch needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.coupling.expressions import Atom, Axes, Sum, atoms, resolved
from jaxprune.coupling.inner import inner
from jaxprune.coupling.reader import Step
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.zeros import GONE, Value, constant, gives_zero, is_zero
from jaxprune.programs.primitives import rule_of

_SUMS = ("add", "add_any", "sub")


class Simplify(Keep):
    """As `Keep`, but it runs programs on `Value`s.

    Attributes:
      drop: whether x + c becomes x where x depends on an input and c does no longer: c are biases
        and shifts of norms behind an empty axis.
      in_use: atoms of which some value that depends on an input has entries.
      joined: atoms of segments that are concatenated, and depend on no input any more.
    """

    def __init__(self, kept: Mapping[Atom, np.ndarray], drop: bool = False):
        super().__init__(kept)
        self.drop = drop
        self.in_use: dict[Atom, None] = {}
        self.joined: dict[Atom, None] = {}

    def constant(self, x: Any) -> Value:
        """A constant as the operand of a step."""
        return Value(x)

    def step(self, step: Step, operands: Sequence[Value]) -> list[Value]:
        """The results of an equation; notes which atoms are in use."""
        results = self._values(step, list(operands))
        self._note(step, operands, results)
        return results

    def whole(self, value: Value, var: Any, axes: Axes) -> Any:
        """The array; zeros, if the value is known to be zero."""
        return jnp.zeros(self.shape(axes), var.aval.dtype) if value.x is None else value.x

    # --- equations --------------------------------------------------------------------------------

    def _values(self, step: Step, operands: list[Value]) -> list[Value]:
        if step.inner:
            return inner(self, step, operands)
        if step.outputs and all(map(self._is_empty, step.outputs, step.eqn.outvars)):
            return [GONE] * len(step.outputs)
        depends = any(value.depends for value in operands)
        severed = not depends and any(value.severed for value in operands)
        if gives_zero(step.eqn, operands):
            severed = any(value.severed for value in operands)
            return [Value(None, severed=severed) for _ in step.outputs]
        if step.eqn.primitive.name == "convert_element_type" and constant(operands[0]) is not None:
            # by numpy, for a traced number is not known any more
            return [Value(np.asarray(operands[0].x, step.eqn.params["new_dtype"]))]
        if step.eqn.primitive.name in _SUMS:
            x = self._sum(step, self._dropped(operands))
            return [Value(x, depends, severed)]
        arrays = map(self.whole, operands, step.eqn.invars, step.inputs)
        return self._results(step, super().step(step, list(arrays)), depends, severed)

    def _results(self, step: Step, xs: Any, depends: bool, severed: bool) -> list[Value]:
        empty = map(self._is_empty, step.outputs, step.eqn.outvars)
        return [
            GONE if gone else Value(x, depends, severed) for x, gone in zip(xs, empty, strict=True)
        ]

    def _is_empty(self, axes: Axes, var: Any) -> bool:
        return 0 in self.shape(axes) and not jnp.issubdtype(var.aval.dtype, jax.dtypes.extended)

    def _dropped(self, operands: list[Value]) -> list[Value]:
        """Two terms; a severed one is gone if the other depends on an input."""
        if not self.drop or not any(value.depends for value in operands):
            return operands
        return [GONE if value.severed else value for value in operands]

    def _sum(self, step: Step, operands: list[Value]) -> Any:
        """The sum or difference of two values, at most one of which is zero."""
        first, last = operands
        arrays = map(self.whole, operands, step.eqn.invars, step.inputs)
        if not is_zero(first) and not is_zero(last):
            return super().step(step, list(arrays))[0]
        x = next(x for x, value in zip(arrays, operands, strict=True) if not is_zero(value))
        x = lax.neg(x) if is_zero(first) and step.eqn.primitive.name == "sub" else x
        shape = self.shape(step.outputs[0])
        return x if np.shape(x) == shape else jnp.broadcast_to(x, shape)

    def _note(self, step: Step, operands: Sequence[Value], results: list[Value]) -> None:
        """Which atoms are in use; a concatenation uses none that its segments do not."""
        product = rule_of(step.eqn).product is not None
        for value, axes in zip(results, step.outputs, strict=True):
            for e in axes if value.depends else ():
                if product or not isinstance(resolved(e), Sum):
                    self.in_use |= dict.fromkeys(atoms(e))
        if step.eqn.primitive.name == "concatenate":
            along = step.eqn.params["dimension"]
            for value, axes in zip(operands, step.inputs, strict=True):
                if value.severed:
                    self.joined |= dict.fromkeys(atoms(axes[along]))
