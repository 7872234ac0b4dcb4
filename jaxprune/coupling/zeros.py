"""Values of a program of which some is gone, and whether they are zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune.programs.primitives import is_zero as results_are_zero
from jaxprune.programs.primitives import known_number, zero_like


@partial(jax.tree_util.register_dataclass, data_fields=["x"], meta_fields=["depends", "severed"])
@dataclass(frozen=True)
class Value:
    """A value of a program of which some is gone. A pytree: it goes into loops and branches.

    Attributes:
      x: the array; None if all of it is known to be zero, or nothing of it is left.
      depends: whether it depends on an input.
      severed: whether it depended on an input or a leaf before the removal, and does no longer.
    """

    x: Any
    depends: bool = False
    severed: bool = False


GONE = Value(None, severed=True)


def is_zero(value: Value) -> bool:
    """Whether the value is known to be zero."""
    return value.x is None or constant(value) == 0


def constant(value: Value) -> Any:
    """The number that a scalar is, by numpy; None where it is not known."""
    x = value.x
    return None if x is None or np.ndim(x) else known_number(x, jax.typeof(x))


def gives_zero(eqn: Any, operands: Sequence[Value]) -> bool:
    """Whether all results of the equation are zero."""
    numbers = [
        zero_like(var.aval) if value.x is None else constant(value)
        for value, var in zip(operands, eqn.invars, strict=True)
    ]
    return results_are_zero(eqn, numbers)
