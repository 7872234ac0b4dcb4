"""A program that is run with some of its kernels in another form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.extend import source_info_util

from jaxprune.programs.interpret import bind, programs, walk
from jaxprune.programs.primitives import sides

# results with the entries of the kernel in their places
CASTS = ("convert_element_type", "copy", "sharding_constraint")
# programs of an equation that run once, and have no derivative of their own
CALLS = ("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint")


@dataclass(frozen=True)
class Held:
    """A kernel in the place of an operand, known by its name alone."""

    name: str
    dtype: Any  # a program may cast it


@dataclass(frozen=True)
class Read:
    """An equation that reads a kernel.

    Attributes:
      why: None for a product x @ kernel; else the reason why it can't have another form.
      rows: the rows of the other operand, (rows, in), at the traced shapes.
    """

    name: str
    line: str
    why: str | None
    rows: int = 0


Multiply = Callable[[Held, jax.Array, dict[str, Any]], jax.Array]  # x (n, in) -> (n, out)


def run(program: Any, operands: list[Any], multiply: Multiply) -> list[Any]:
    """The results of a program; `multiply` makes the products with operands that are `Held`.

    `multiply` gets the kernel, the other operand as (n, in), and the precision and
    preferred_element_type of the product.

    Raises:
      ValueError: if an equation reads a kernel in another way; it names the line.
    """

    def equation(eqn: Any, values: list[Any]) -> list[Any]:
        held = [isinstance(value, Held) for value in values]
        if not any(held):
            return bind(eqn, values)
        kernel = values[held.index(True)]
        if eqn.primitive.name in CALLS:
            return run(programs(eqn)[0], values, multiply)
        if eqn.primitive.name in CASTS:
            return [Held(kernel.name, eqn.outvars[0].aval.dtype)]
        if why := not_a_product(eqn, held):
            raise ValueError(f"'{kernel.name}' {why}{line_of(eqn)}")
        return [_product(eqn, values, held.index(True), multiply)]

    results = walk(program, operands, equation, lambda x, atom: x)
    for result in results:
        if isinstance(result, Held):
            raise ValueError(f"'{result.name}' is a result of the function")
    return results


def reads(program: Any, operands: list[Any]) -> list[Read]:
    """All equations that read operands which are `Held`; the others may be anything."""
    found: list[Read] = []

    def equation(eqn: Any, values: list[Any]) -> list[Any]:
        held = [isinstance(value, Held) for value in values]
        results: list[Any] = [None] * len(eqn.outvars)
        if not any(held):
            return results
        kernel = values[held.index(True)]
        if eqn.primitive.name in CALLS:
            return walk(programs(eqn)[0], values, equation, lambda x, atom: None)
        if eqn.primitive.name in CASTS:
            return [Held(kernel.name, eqn.outvars[0].aval.dtype)]
        why = not_a_product(eqn, held)
        rows = 0
        if why is None:
            aval = eqn.invars[1 - held.index(True)].aval
            rows = aval.size // max(eqn.invars[held.index(True)].aval.shape[0], 1)
        for value in values:
            if isinstance(value, Held):
                found.append(Read(value.name, line_of(eqn), why, rows))
        return results

    last = walk(program, operands, equation, lambda x, atom: None)
    found += [Read(x.name, "", "is a result of the function") for x in last if isinstance(x, Held)]
    return found


def not_a_product(eqn: Any, held: list[bool]) -> str | None:
    """Why an equation is no product x @ kernel with a matrix (in, out); None if it is one."""
    kind = eqn.primitive.name
    product = sides(eqn) if kind == "dot_general" else None
    if product is None:
        if kind == "conv_general_dilated":
            return "is the kernel of a convolution"
        return f"is read by {kind}, which is no product"
    if sum(held) != 1:
        return "is multiplied with another kernel of blocks"
    side = product[held.index(True)]
    rank = len(eqn.invars[held.index(True)].aval.shape)
    if rank != 2 or side.batch:
        return f"has {rank} axes in a product, and only matrices have other forms here"
    if side.contracted != (0,):
        return "is transposed in a product, x @ kernel.T"
    return None


def _product(eqn: Any, values: list[Any], place: int, multiply: Multiply) -> jax.Array:
    """The result of a dot_general whose operand at `place` is a kernel (in, out)."""
    x, kernel = values[1 - place], values[place]
    (axis,) = sides(eqn)[1 - place].contracted  # type: ignore[index]
    x = x.transpose([*(i for i in range(x.ndim) if i != axis), axis])
    how = {name: eqn.params[name] for name in ("precision", "preferred_element_type")}
    y = multiply(kernel, x.reshape(-1, x.shape[-1]), how)
    y = y.reshape(*x.shape[:-1], y.shape[-1])
    y = y if place == 1 else y.transpose([y.ndim - 1, *range(y.ndim - 1)])
    return lax.convert_element_type(y, eqn.outvars[0].aval.dtype)


def line_of(eqn: Any) -> str:
    """Where an equation was written, as ", at file.py:12"; empty if that is not known."""
    path, colon, line = source_info_util.summarize(eqn.source_info).partition(":")
    return f", at {path.rsplit('/', 1)[-1]}:{line}" if colon else ""
