"""Which axes of which leaves of any JAX function share neurons: `analyze`, on its jaxpr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

import jaxprune.coupling.rules as _rules  # noqa: F401  the table of primitives
from jaxprune.base import Params
from jaxprune.coupling.exactness import differences
from jaxprune.coupling.expressions import Atom, Axes, Expr, freeze
from jaxprune.coupling.groups import grouped, matches_group, named, reasons
from jaxprune.coupling.reader import Reader
from jaxprune.coupling.structure import Member, Structure
from jaxprune.coupling.uses import Uses
from jaxprune.prunable.rules import check_all_match, matches
from jaxprune.trees import named_leaves, present_leaves, quoted, shape_only


def analyze(
    fn: Callable[..., Any],
    params: Params,
    *example_args: Any,
    freeze: Sequence[Any] = (),
    sliceable_inputs: Sequence[tuple[str, int]] = (),
) -> Structure:
    """The neurons of any function, and the axes of its params that go with each: a `Structure`.

    `fn` is traced to a jaxpr on shapes, and never run. Each axis of each value in it is an
    expression in neurons (`jaxprune.coupling.expressions`); each primitive says which axes are the
    same. Axes that are the same are pruned together: the outputs of a layer, its bias and norm, the
    inputs of all layers that read it, every layer that adds to one residual stream. The axes of
    inputs and outputs can't be pruned, nor axes that a primitive without a rule reads: these
    freeze, and the table says why, with the line of the program.

    Analyze the function as it is evaluated: without dropout, with running statistics.

    Args:
      fn: `(params, *args) -> Any`, such as `module.apply` of linen, or for nnx
        `lambda state, x: nnx.merge(graphdef, state)(x)`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`; for batch norm with the running
        statistics, which are pruned with the other leaves.
      *example_args: pytrees of the same; only shapes and dtypes matter.
      freeze: what is not pruned: rules for leaves, as in `matching`, or for groups by the names
        that are printed (`"*.heads"`), an axis as it is printed (`"a[1]"`), or `(rule, axis)` for
        one axis of leaves.
      sliceable_inputs: axes of inputs that may be pruned, `(path, axis)`; the first input is "0".

    Raises:
      ValueError: if `freeze` or `sliceable_inputs` names a leaf or an axis that is not there.
      TypeError: if `fn` can't be called, or an argument is no array.

    Reference: the grouping is that of Fang et al., 2023, DepGraph: Towards Any Structural Pruning;
    here it is derived from the program.

    >>> import jax.numpy as jnp
    >>> mlp = lambda p, x: jnp.tanh(x @ p['a']) @ p['b']
    >>> analyze(mlp, {'a': jnp.ones((4, 8)), 'b': jnp.ones((8, 2))}, jnp.ones((1, 4)))
    group  size  of each neuron  on
    --------------------------------------
    a         8               6  a[1] b[0]
    --------------------------------------
    1 group of 8 neurons; 48 of 48 weights (100.0%) can be pruned
    frozen:
      an axis of input 0: a[0]
      an axis of output 0: b[1]
    """
    if not callable(fn):
        raise TypeError(
            "analyze: fn is a function (params, *args), such as module.apply; got "
            f"{type(fn).__name__}."
        )
    shapes, inputs = jax.tree.map(shape_only, (params, example_args))
    return read(fn, shapes, inputs, freeze, tuple(sliceable_inputs), freeze_outputs=True)


def read(
    fn: Callable[..., Any],
    shapes: Params,
    inputs: tuple,
    frozen: Sequence[Any] = (),
    sliceable_inputs: tuple[tuple[str, int], ...] = (),
    freeze_outputs: bool = True,
) -> Structure:
    """As `analyze`, of shapes."""
    jaxpr, results = jax.make_jaxpr(fn, return_shape=True)(shapes, *inputs)
    reader = Reader()
    of_params, of_inputs = _fresh(shapes), _fresh(inputs)
    program = reader.read(jaxpr, [*of_params.values(), *of_inputs.values()])

    sliceable = _sliceable(sliceable_inputs, of_inputs)
    for path, axes in of_inputs.items():
        for i, axis in enumerate(axes):
            if (path, i) not in sliceable:
                freeze(axis, f"an axis of input {path}")
    if freeze_outputs:
        paths = [path for path, _ in present_leaves(results)]
        for path, axes in zip(paths, program.out_axes, strict=True):
            for axis in axes:
                freeze(axis, f"an axis of output {path or '0'}")
    for axes in of_params.values():
        for axis in axes if id(axes) not in reader.first_use else ():
            freeze(axis, "not read by the function")
    used = lambda path: reader.first_use.get(id(of_params[path]), len(reader.first_use))
    in_order = {path: of_params[path] for path in sorted(of_params, key=used)}
    leaves = in_order | {f"input {path}": axes for path, axes in of_inputs.items()}
    names = named(leaves, Uses(program, list(of_params)))
    _freeze_asked(frozen, shapes, of_params, names)
    groups = grouped(leaves, names)
    names = {name: names[name] for name in groups}
    name_of = {atom: name for name, atom in names.items()}
    inexact = differences(program, of_params, name_of)
    return Structure(
        groups=groups,
        frozen=reasons(in_order),
        inexact={
            why: tuple(name for atom, name in name_of.items() if atom in neurons)
            for why, neurons in inexact.items()
        },
        unknown=reader.unknown,
        shapes=shapes,
        fn=fn,
        inputs=inputs,
        outputs=results,
        axes=of_params,
        atoms=names,
        program=program,
        sliceable_inputs=sliceable_inputs,
    )


def _fresh(tree: Any) -> dict[str, Axes]:
    """An atom for each axis of each leaf, by path."""
    shape = lambda leaf: getattr(leaf, "shape", ())
    return {path: tuple(map(Atom, shape(leaf))) for path, leaf in present_leaves(tree)}


def _freeze_asked(
    asked: Any, shapes: Params, leaves: Mapping[str, Axes], names: Mapping[str, Atom]
) -> None:
    """Freezes the leaves, axes and groups that `asked` names."""
    printed = {str(Member(path, i)): e for path, axes in leaves.items() for i, e in enumerate(axes)}
    if isinstance(asked, str) or not isinstance(asked, Iterable):
        raise TypeError(f"analyze: freeze is a list of rules; got {asked!r}. Write [{asked!r}].")
    for entry in asked:
        rule, axis = entry if isinstance(entry, tuple) else (entry, None)
        by_name: list[Expr] = [
            atom for name, atom in names.items() if entry == rule and matches_group(rule, name)
        ]
        if isinstance(entry, str) and entry in printed:
            by_name.append(printed[entry])
        for e in by_name:
            freeze(e, f"frozen by {entry!r}")
        if not by_name:
            _check_matches(rule, shapes, names)
        for path, leaf in named_leaves(shapes):
            if leaf is None or not matches(rule, path, leaf):
                continue
            if axis is not None and not -len(leaf.shape) <= axis < len(leaf.shape):
                raise ValueError(
                    f"analyze: freeze names axis {axis} of '{path}', of shape {leaf.shape}."
                )
            chosen = leaves[path] if axis is None else [leaves[path][axis]]
            for e in chosen:
                freeze(e, f"frozen by {entry!r}")


def _check_matches(rule: Any, shapes: Params, names: Mapping[str, Atom]) -> None:
    try:
        check_all_match([rule], shapes)
    except ValueError as error:
        groups = quoted((name, None) for name in names)
        raise ValueError(
            f"analyze: freeze: {error} It matches no group either: {groups}."
        ) from None


def _sliceable(asked: Sequence[Any], inputs: Mapping[str, Axes]) -> set[tuple[str, int]]:
    sliceable = set()
    for entry in asked:
        path, axis = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, None)
        rank = len(inputs.get(path, ()))
        if not isinstance(axis, int) or not -rank <= axis < rank:
            have = [(f"{name}", None) for name in inputs]
            raise ValueError(
                f"analyze: sliceable_inputs are (path, axis) of inputs, such as ('0', -1); got "
                f"{entry!r}. The inputs are {quoted(have)}"
                + (f", and '{path}' has {rank} axes." if path in inputs else ".")
            )
        sliceable.add((path, axis % rank))
    return sliceable
