"""A program of which parts fell away, as a jaxpr without them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from jaxprune.base import Params
from jaxprune.coupling.reader import Program
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.simplify import Simplify
from jaxprune.coupling.structure import Structure
from jaxprune.coupling.zeros import GONE, Value
from jaxprune.trees import is_none, named_leaves, shape_only


class Reduced(NamedTuple):
    """What is left of a program.

    Attributes:
      jaxpr: of those operands that are read.
      read: bool an operand (leaves of the params, then inputs): whether it is.
      depends: bool a result that was wanted: whether it depends on an input.
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
    """The program on what is left of its operands, without all that no result needs.

    Args:
      run: which neurons are left.
      leaves: of the params, as shapes; None where nothing is left, or what is left is zero.
      inputs: leaves of the inputs, as shapes.
      wanted: bool a result; None for all.
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


def small_shapes(structure: Structure, keep: Keep, gone: Collection[str] = ()) -> Params:
    """What is left of the params, as shapes; None where they are gone."""
    leaves = [
        None
        if x is None or path in gone
        else jax.ShapeDtypeStruct(keep.shape(structure.axes[path]), x.dtype)
        for path, x in named_leaves(structure.shapes)
    ]
    return jax.tree.unflatten(jax.tree.structure(structure.shapes, is_leaf=is_none), leaves)


def small_inputs(structure: Structure, keep: Keep) -> Any:
    """The example inputs, with what is left of their sliceable axes."""
    leaves, treedef = jax.tree.flatten(structure.inputs)
    axes = structure.program.in_axes[len(structure.axes) :]
    pairs = zip(leaves, axes, strict=True)
    small = [jax.ShapeDtypeStruct(keep.shape(a), x.dtype) if a else x for x, a in pairs]
    return jax.tree.unflatten(treedef, small)
