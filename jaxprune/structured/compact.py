"""Really smaller: the params of the kept neurons, and the function that runs on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.base import Params, is_none
from jaxprune.coupling.analyze import Structure, read
from jaxprune.coupling.expressions import Atom, atoms, infer
from jaxprune.coupling.reader import Program
from jaxprune.coupling.replay import Keep
from jaxprune.flops import shape_only
from jaxprune.rules import named_leaves, quoted
from jaxprune.structured.check import check_params
from jaxprune.structured.kept import Kept, known


class Compact(NamedTuple):
    """A smaller network: `small.fn(small.params, *args)`."""

    params: Params
    fn: Callable[..., Any]


def compact(structure: Structure, params: Params, kept: Kept) -> Compact:
    """The network of the kept neurons only: smaller params, and the function on them.

        small = compact(structure, params, kept)
        small.fn(small.params, x)       # = fn(apply_masks(params, group_masks(structure, kept)), x)

    See `shrink` and `replay`, of which it is made.

    Raises:
      ValueError, TypeError: if `kept` or the params do not fit the structure, or are traced.
    """
    return Compact(shrink(structure, params, kept), replay(structure, kept))


def shrink(structure: Structure, tree: Any, kept: Kept) -> Any:
    """`tree` with the kept neurons only, in every part of it that is like the params.

    Args:
      tree: params, gradients, masks, an optimizer's state, averages of weights: what has the paths
        and shapes of the params is made smaller, all else stays.
      kept: bool (size,) by group, True = kept, not traced.

    Raises:
      ValueError: if no part of the tree is like the params; it names a leaf that differs.
    """
    keep = Keep({structure.atoms[name]: own for name, own in known(structure, kept).items()})
    wanted: Any = jax.tree.structure(structure.shapes, is_leaf=is_none)
    paths = [path for path, _ in named_leaves(structure.shapes)]

    def is_like(part: Any) -> bool:
        return jax.tree.structure(part, is_leaf=is_none) == wanted

    def smaller(part: Any) -> Any:
        if not is_like(part):
            return part
        leaves = jax.tree.leaves(part, is_leaf=is_none)
        pairs = zip(paths, leaves, strict=True)
        return jax.tree.unflatten(wanted, [taken(path, leaf) for path, leaf in pairs])

    def taken(path: str, leaf: Any) -> Any:
        axes = structure.axes.get(path, ())
        full = tuple(len(keep.of(axis)) for axis in axes)
        return keep.take(leaf, axes) if leaf is not None and np.shape(leaf) == full else leaf

    parts, treedef = jax.tree.flatten(tree, is_leaf=is_like)
    if not any(map(is_like, parts)):
        have = [path for path, _ in named_leaves(tree)][:6]
        raise ValueError(
            "shrink: nothing in this tree is like the params that were analysed; they have "
            f"{paths[:6]}, the tree {have}. Analyse the params that you shrink."
        )
    if len(parts) == 1:  # params themselves: all must fit
        check_params("shrink", structure, tree)
    return jax.tree.unflatten(treedef, map(smaller, parts))


def replay(
    structure: Structure, kept: Kept, fn: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """The function `(small_params, *args) -> Any` on params of which only `kept` neurons are left.

    The program of `fn` is run anew, equation by equation, with sizes computed from those that are
    left: no model is edited, and shapes that it reads in Python stay as they were. Numbers that
    came from sizes (the n of a mean, the root in attention) are the old ones, so that the result
    is that of the masked function. It can be jitted, differentiated, vmapped and exported; custom
    derivatives are kept. Arguments of other shapes, such as another batch, are traced anew.

    Args:
      kept: bool (size,) by group, True = kept, not traced.
      fn: another function of the same params, such as the one that trains them and returns new
        running statistics; None for the one that was analysed.

    Raises:
      ValueError: if `kept` does not fit; (when called) if the params are not the small ones, or
        the neurons can't be left out of this function, which says why.
    """
    kept = known(structure, kept)
    own = fn if fn is not None else structure.fn
    of_atoms = {structure.atoms[name]: entries for name, entries in kept.items()}
    keep = Keep(of_atoms)
    shapes = {path: keep.shape(axes) for path, axes in structure.axes.items()}
    programs: dict[Any, tuple[Program, Keep, Any]] = {}
    if fn is None:
        programs[_key(_small(structure, keep))] = structure.program, keep, structure.outputs

    def small_fn(params: Params, *args: Any) -> Any:
        inputs = jax.tree.map(shape_only, args)
        _check_small(structure, params, shapes)
        if _key(inputs) not in programs:
            programs[_key(inputs)] = _read_again(structure, keep, own, inputs)
        program, of_program, outputs = programs[_key(inputs)]
        operands = [*jax.tree.leaves(params), *jax.tree.leaves(args)]
        results = of_program.run(program, operands)
        return jax.tree.unflatten(jax.tree.structure(outputs), results)

    return small_fn


def _key(inputs: Any) -> Any:
    leaves, treedef = jax.tree.flatten(inputs)
    return treedef, tuple((x.shape, x.dtype) if hasattr(x, "shape") else type(x) for x in leaves)


def _small(structure: Structure, keep: Keep) -> Any:
    """The example inputs, with what is left of their sliceable axes."""
    leaves, treedef = jax.tree.flatten(structure.inputs)
    axes = structure.program.in_axes[len(structure.program.in_axes) - len(leaves) :]
    pairs = zip(leaves, axes, strict=True)
    small = [jax.ShapeDtypeStruct(keep.shape(a), x.dtype) if a else x for x, a in pairs]
    return jax.tree.unflatten(treedef, small)


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
    return jax.tree.unflatten(jax.tree.structure(inputs, is_leaf=is_none), leaves)


def _read_again(
    structure: Structure, keep: Keep, fn: Callable[..., Any], inputs: Any
) -> tuple[Program, Keep, Any]:
    """The program of `fn` on inputs of these shapes, and what is left of its own atoms."""
    sliceable = structure.sliceable_inputs if fn is structure.fn else ()
    full = _whole(structure, inputs) if sliceable else inputs
    again = read(fn, structure.shapes, full, (), sliceable, freeze_outputs=False)
    kept: dict[Atom, np.ndarray] = {}
    for path, axes in structure.axes.items():
        for i, (axis, old) in enumerate(zip(again.axes[path], axes, strict=True)):
            if not infer(axis, keep.of(old), kept):
                raise ValueError(
                    f"replay: in this function the entries of {path}[{i}] are tied in other ways "
                    "than in the one that was analysed: analyse this one."
                )
    for why, members in again.frozen.items():
        if why == "not read by the function":
            continue
        for path, i in members:
            for atom in (own for own in atoms(again.axes[path][i]) if why in own.frozen):
                if not kept[atom].all():
                    raise ValueError(
                        f"replay: this function can't do without the neurons that were pruned from "
                        f"{path}[{i}], which is {why}."
                    )
    return again.program, Keep(kept), again.outputs


def _check_small(structure: Structure, params: Params, shapes: dict[str, tuple]) -> None:
    wanted: Any = jax.tree.structure(structure.shapes)
    if jax.tree.structure(params) != wanted:
        raise ValueError(
            "this function takes the small params, a tree like those that were analysed; got the "
            f"leaves {quoted([(path, x) for path, x in named_leaves(params)])}."
        )
    for path, leaf in named_leaves(params):
        if leaf is not None and np.shape(leaf) != shapes[path]:
            raise ValueError(
                f"this function takes the small params: '{path}' of shape {shapes[path]}; got "
                f"{np.shape(leaf)}. shrink(structure, params, kept) makes them."
            )
