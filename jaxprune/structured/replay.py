"""The function of a network, run on the params that are left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxprune.base import Params
from jaxprune.coupling.analyze import read
from jaxprune.coupling.expressions import Atom, atoms, infer, transfer
from jaxprune.coupling.reader import Program
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.simplify import Simplify
from jaxprune.coupling.structure import Structure
from jaxprune.structured.kept import KeptLike, check_kept
from jaxprune.structured.reduced import reduced
from jaxprune.trees import is_none, named_leaves, present_leaves, quoted, shape_only, with_leaves


def replay(
    structure: Structure, kept: KeptLike, fn: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """The function `(small_params, *args) -> Any` on params with only the `kept` neurons.

    It runs the program of `fn` anew, equation by equation, on the smaller arrays: no model is
    edited, and shapes that the model reads in Python stay as they were. Numbers that came from
    sizes (the n of a mean, the root in attention) stay too, so that the result equals the masked
    function's. Random numbers are drawn for the smaller arrays: dropout drops other entries than in
    the masked function, as often. The function can be jitted, differentiated, vmapped and exported,
    with a batch of symbolic size too; custom derivatives stay. Arguments of other shapes, such as
    another batch, are traced anew.

    Args:
      kept: bool (size,) by group, True = kept, not traced; or a `Removal`.
      fn: another function of the same params, such as the one that trains them and returns new
        running statistics; None for the one that was analyzed. A result at the path of a removed
        leaf (its gradient, new statistics) becomes None.

    Raises:
      ValueError: if `kept` does not fit; (when called) if the params are not the small ones, or
        this function can't do without the neurons; the message says why.
    """
    left = check_kept(structure, kept)
    gone, keep = left.removed, left.axes
    full_fn = fn if fn is not None else structure.fn
    shapes = {path: keep.shape(axes) for path, axes in structure.axes.items() if path not in gone}
    first = _key(left.inputs()) if fn is None else None
    functions: dict[Any, Callable[..., Any]] = {}

    def function(params: Params, inputs: Any, key: Any) -> Callable[..., Any]:
        """Of the leaves of params and inputs of these shapes."""
        if key == first:
            program, of_program, outputs = structure.program, keep, structure.outputs
        else:
            program, of_program, outputs = _read_again(structure, keep, full_fn, inputs)
        if not left.is_removal:
            treedef = jax.tree.structure(outputs)
            return lambda xs: jax.tree.unflatten(treedef, of_program.run(program, xs))
        return _without(structure, gone, program, of_program, outputs, params, inputs)

    def small_fn(params: Params, *args: Any) -> Any:
        inputs = jax.tree.map(shape_only, args)
        _check_small(structure, params, shapes)
        key = _key(inputs)
        if key not in functions:
            functions[key] = function(params, inputs, key)
        return functions[key]([*jax.tree.leaves(params), *jax.tree.leaves(args)])

    return small_fn


def _without(
    structure: Structure,
    gone: Sequence[str],
    program: Program,
    keep: Keep,
    outputs: Any,
    params: Params,
    inputs: Any,
) -> Callable[..., Any]:
    """The function of the leaves of params and inputs, without the parts that were removed."""
    small = dict(named_leaves(params))
    leaves = [None if path in gone else shape_only(small[path]) for path in structure.axes]
    paths = [path for path, _ in present_leaves(outputs)]
    wanted = [not any(f"/{path}".endswith(f"/{leaf}") for leaf in gone) for path in paths]
    left = reduced(program, Simplify(keep.kept), leaves, jax.tree.leaves(inputs), wanted)
    run, treedef = jaxpr_as_fun(left.jaxpr), jax.tree.structure(outputs)
    operands = [*leaves, *jax.tree.leaves(inputs)]
    there = [is_read for x, is_read in zip(operands, left.read, strict=True) if x is not None]

    def function(xs: Sequence[Any]) -> Any:
        results = iter(run(*(x for x, is_read in zip(xs, there, strict=True) if is_read)))
        return jax.tree.unflatten(
            treedef, [next(results) if is_wanted else None for is_wanted in wanted]
        )

    return function


def _key(inputs: Any) -> Any:
    leaves, treedef = jax.tree.flatten(inputs)
    return treedef, tuple((x.shape, x.dtype) if hasattr(x, "shape") else type(x) for x in leaves)


def _whole(structure: Structure, inputs: Any) -> Any:
    """The inputs with their sliceable axes as they were before."""
    before = dict(named_leaves(structure.inputs))
    leaves = []
    for path, x in named_leaves(inputs):
        for at, i in structure.sliceable_inputs:
            if at == path:
                shape = list(x.shape)
                shape[i] = before[path].shape[i]
                x = jax.ShapeDtypeStruct(tuple(shape), x.dtype)
        leaves.append(x)
    return with_leaves(inputs, leaves)


def _read_again(
    structure: Structure, keep: Keep, fn: Callable[..., Any], inputs: Any
) -> tuple[Program, Keep, Any]:
    """The program of `fn` on inputs of these shapes, and what is left of its atoms."""
    sliceable = structure.sliceable_inputs if fn is structure.fn else ()
    full = _whole(structure, inputs) if sliceable else inputs
    again = read(fn, structure.shapes, full, (), sliceable, freeze_outputs=False)
    kept: dict[Atom, np.ndarray] = {}
    for path, axes in structure.axes.items():
        for i, (axis, old) in enumerate(zip(again.axes[path], axes, strict=True)):
            if not (transfer(axis, old, keep.kept, kept) or infer(axis, keep.of(old), kept)):
                raise ValueError(
                    f"replay: in this function the entries of {path}[{i}] are tied in other ways "
                    "than in the one that was analyzed: analyze this one."
                )
    for why, members in again.frozen.items():
        if why == "not read by the function":
            continue
        for path, i in members:
            for atom in (a for a in atoms(again.axes[path][i]) if why in a.frozen):
                if not kept[atom].all():
                    raise ValueError(
                        f"replay: this function can't do without the neurons that were pruned from "
                        f"{path}[{i}], which is {why}."
                    )
    return again.program, Keep(kept), again.outputs


def _check_small(structure: Structure, params: Params, shapes: dict[str, tuple]) -> None:
    before, treedef = jax.tree.flatten(structure.shapes, is_leaf=is_none)
    paths = [path for path, _ in named_leaves(structure.shapes)]
    left = [x if path in shapes else None for path, x in zip(paths, before, strict=True)]
    wanted: Any = jax.tree.structure(jax.tree.unflatten(treedef, left))
    if jax.tree.structure(params) != wanted:
        raise ValueError(
            "this function takes the small params, a tree like those that were analyzed; got the "
            f"leaves {quoted([(path, x) for path, x in named_leaves(params)])}."
        )
    for path, leaf in named_leaves(params):
        if leaf is not None and np.shape(leaf) != shapes[path]:
            raise ValueError(
                f"this function takes the small params: '{path}' of shape {shapes[path]}; got "
                f"{np.shape(leaf)}. shrink(structure, params, kept) makes them."
            )
