"""Which results of a primitive are zero because its operands are, whole arrays at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune.base import is_known
from jaxprune.coupling.exactness import KEEPS_ZERO, PRODUCTS


@partial(jax.tree_util.register_dataclass, data_fields=["x"], meta_fields=["depends", "severed"])
@dataclass(frozen=True)
class Value:
    """A value of a program of which some is gone. A pytree: it goes into loops and branches.

    Attributes:
      x: the array; None if all of it is known to be zero, or nothing of it is left.
      depends: whether it depends on an input.
      severed: whether it would, or a leaf would be in it, had nothing been removed.
    """

    x: Any
    depends: bool = False
    severed: bool = False


GONE = Value(None, severed=True)

_ANY = {"mul", "and"} | PRODUCTS
_FIRST = {"div", "rem", "dynamic_slice", "gather", "select_and_scatter_add"}
_ALL = KEEPS_ZERO | {
    "clamp", "cummax", "cummin", "cumprod", "pad", "reduce_and", "reduce_max", "reduce_min",
    "reduce_or", "reduce_prod", "reduce_sum", "reduce_window_max", "reduce_window_min",
    "scatter-add", "scatter_add", "sort",
}  # fmt: skip


def is_zero(value: Value) -> bool:
    return value.x is None or constant(value) == 0


def constant(value: Value) -> float | None:
    """The number that a scalar is, where it is known."""
    x = value.x
    if x is None or not is_known(x) or np.ndim(x):
        return None
    return float(np.real(x)) if np.issubdtype(np.result_type(x), np.number) else None


def gives_zero(eqn: Any, operands: Sequence[Value]) -> bool:
    """Whether all results of the equation are zero.

    A sum over no entries is zero, and so is a maximum: that of the zeros which are there in a
    masked network. Zero times anything is zero, also times inf, and so is zero over anything.
    """
    kind, zero = eqn.primitive.name, [is_zero(value) for value in operands]
    if not zero:
        return False
    if kind in _ANY:
        return any(zero)
    if kind in _FIRST or (kind == "integer_pow" and eqn.params["y"] > 0):
        return zero[0]
    if kind == "select_n":
        return all(zero[1:])
    if kind in ("max", "min"):  # max(0, -1) is zero, and so is min(0, 6)
        sign = 1 if kind == "max" else -1
        known = [constant(value) for value in operands]
        return any(zero) and all(
            z or (c is not None and sign * c <= 0) for z, c in zip(zero, known, strict=True)
        )
    if kind == "clamp":
        low, high = constant(operands[0]), constant(operands[2])
        return zero[1] and (low or 0) <= 0 <= (high or 0) and None not in (low, high)
    return kind in _ALL and all(zero)
