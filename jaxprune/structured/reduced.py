"""A program without the parts that nothing needs any more, as a jaxpr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from jaxprune.coupling.reader import Program
from jaxprune.coupling.simplify import Simplify
from jaxprune.coupling.zeros import GONE, Value
from jaxprune.trees import shape_only


class Reduced(NamedTuple):
    """What is left of a program.

    Attributes:
      jaxpr: its operands are those that are read.
      read: for each operand (leaves of the params, then inputs), whether it is read.
      depends: for each result that was wanted, whether it depends on an input.
    """

    jaxpr: ClosedJaxpr
    read: list[bool]
    depends: list[bool]


def reduced(
    program: Program,
    run: Simplify,
    leaves: Sequence[Any],
    inputs: Sequence[Any],
    wanted: Sequence[bool] | None = None,
) -> Reduced:
    """The program on what is left of its operands, without what no result needs.

    Args:
      run: which neurons are left.
      leaves: of the params, as shapes; None where nothing is left, or all is zero.
      inputs: leaves of the inputs, as shapes.
      wanted: for each result, whether it is wanted; None for all.
    """
    wanted = [True] * len(program.out_axes) if wanted is None else wanted
    operands = [*leaves, *inputs]
    there = [x is not None and 0 not in getattr(x, "shape", ()) for x in operands]
    depends: list[bool] = []

    def results(*arrays: Any) -> list[Any]:
        rest = iter(arrays)
        values = [
            Value(next(rest), depends=i >= len(leaves)) if is_there else GONE
            for i, is_there in enumerate(there)
        ]
        every = zip(
            run.run(program, values), program.jaxpr.outvars, program.out_axes, wanted, strict=True
        )
        chosen = [(value, var, axes) for value, var, axes, is_wanted in every if is_wanted]
        depends[:] = [value.depends for value, _, _ in chosen]
        return [run.whole(*each) for each in chosen]

    present = [shape_only(x) for x, is_there in zip(operands, there, strict=True) if is_there]
    closed = jax.make_jaxpr(results)(*present)
    jaxpr, used = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    is_used = iter(used)
    read = [is_there and next(is_used) for is_there in there]
    return Reduced(ClosedJaxpr(jaxpr, closed.consts), read, list(depends))
