"""What elementwise primitives are of numbers, computed by numpy: no device, nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

# of the parameters of an equation, and numbers
NUMBERS: dict[str, Callable[..., Any]] = {
    "convert_element_type": lambda params, x: x.astype(params["new_dtype"]),
    "integer_pow": lambda params, x: x ** np.asarray(params["y"], x.dtype),
}
_OF_NUMBERS_ALONE: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "add": np.add, "add_any": np.add, "and": np.bitwise_and, "cbrt": np.cbrt,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high), "cos": np.cos,
    "div": np.divide, "eq": np.equal, "exp": np.exp, "expm1": np.expm1, "ge": np.greater_equal,
    "gt": np.greater, "is_finite": np.isfinite, "le": np.less_equal, "log": np.log,
    "log1p": np.log1p, "lt": np.less, "max": np.maximum, "min": np.minimum, "mul": np.multiply,
    "ne": np.not_equal, "neg": np.negative, "not": np.bitwise_not, "or": np.bitwise_or,
    "pow": np.power, "rsqrt": lambda x: np.ones_like(x) / np.sqrt(x), "sign": np.sign,
    "sin": np.sin, "sqrt": np.sqrt, "square": np.square, "sub": np.subtract, "tan": np.tan,
    "tanh": np.tanh, "xor": np.bitwise_xor,
}  # fmt: skip
NUMBERS |= {kind: lambda params, *xs, f=f: f(*xs) for kind, f in _OF_NUMBERS_ALONE.items()}
_OF_FLOATS = {"div", "pow", "integer_pow"}  # integers are divided otherwise by numpy


def number_of(eqn: Any, numbers: Sequence[Any]) -> Any:
    """What an equation is of these numbers, a numpy scalar; None of nan, and where devices differ.

    A device may take what is below the smallest normal float for zero.
    """
    kind, dtype = str(eqn.primitive), eqn.outvars[0].aval.dtype
    is_float = jnp.issubdtype(dtype, jnp.floating)
    if kind in _OF_FLOATS and not is_float:
        return None
    with np.errstate(all="ignore"):
        number = np.asarray(NUMBERS[kind](eqn.params, *numbers), dtype)
    if not is_float:
        return number
    return number if number == 0 or abs(number) >= jnp.finfo(dtype).tiny else None
