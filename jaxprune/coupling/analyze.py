"""Which axes of which leaves of any JAX function share neurons: `analyze`, on its jaxpr."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

import jaxprune.coupling.rules as _rules  # noqa: F401  the table of primitives
from jaxprune.base import Params
from jaxprune.coupling import table
from jaxprune.coupling.exactness import differences
from jaxprune.coupling.expressions import Atom, Axes, atoms, freeze, places, size
from jaxprune.coupling.reader import Program, Reader
from jaxprune.coupling.stated import Axis
from jaxprune.flops import shape_only
from jaxprune.rules import check_all_match, matches, named_leaves, quoted


class Member(NamedTuple):
    """An axis that a group of neurons is on, or on a part of."""

    path: str
    axis: int

    def __str__(self) -> str:
        return f"{self.path}[{self.axis}]"


class Neurons(NamedTuple):
    """A group of neurons that are pruned one by one, each along all of these axes.

    Attributes:
      size: how many there are.
      members: the axes that they are on, in the order of the data; never empty.
    """

    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Structure:
    """What `analyze` found; it prints as a table.

    Attributes:
      groups: the neurons that can be pruned, by name, in the order of the data. A group is named
        after the layer that is first to have it; where a layer has several, with the axis.
      frozen: the reasons for which axes can't be pruned, and these axes.
      inexact: where a masked network and a compacted one may differ, and the groups that make it
        so; empty if they compute the same. See `jaxprune.coupling.exactness`.
      unknown: primitives without a rule, by name, and where they are; see `register_rule`.
      shapes: the params, as `jax.ShapeDtypeStruct`.
      fn, inputs, outputs: the function that was read, and the shapes of its inputs and outputs.
      axes: the axis expressions of each leaf of the params, by path.
      atoms: that of each group.
      program: the jaxpr, as it was read.
      sliceable_inputs: those that were given.
    """

    groups: dict[str, Neurons]
    frozen: dict[str, tuple[Member, ...]]
    inexact: dict[str, tuple[str, ...]]
    unknown: dict[str, str]
    shapes: Params
    fn: Callable[..., Any]
    inputs: tuple
    outputs: Any
    axes: dict[str, Axes]
    atoms: dict[str, Atom]
    program: Program
    sliceable_inputs: tuple[tuple[str, int], ...]

    def coupling(self) -> dict[str, list[Axis]]:
        """The groups as a coupling, for `match_weights` and `permute`.

        Left out are groups on an axis that another group is on too (heads and their dimensions in
        one axis), and those on segments of an axis (concatenations): a stated coupling can't say
        them.
        """
        owners = Counter(
            (path, i) for path, axes in self.axes.items() for i, e in enumerate(axes)
            for _ in set(atoms(e)) & set(self.atoms.values())
        )  # fmt: skip
        found = {name: self._stated(name) for name in self.groups}
        return {
            name: axes
            for name, axes in found.items()
            if axes is not None and all(owners[axis[:2]] == 1 for axis in axes)
        }

    def _stated(self, name: str) -> list[Axis] | None:
        """The axes of a group, or None if one of them has more than rows of its neurons."""
        stated = []
        for path, i in self.groups[name].members:
            if path not in self.axes:
                continue
            e = self.axes[path][i]
            found = list(places(e, self.atoms[name]))
            if len(found) != 1 or (found[0] < 0).any():
                return None
            inner = int((found[0] != found[0][0]).argmax())
            stated.append(Axis(path, i, size(e) // (inner * self.groups[name].size), inner))
        return stated

    def __repr__(self) -> str:
        return table.structure(self)


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
    same. What is on one axis is pruned together: outputs of a layer, its bias and norm, the inputs
    of all that read it, every layer that adds to one residual stream. The axes of inputs and
    outputs can't be pruned, nor those that a primitive without a rule reads: these freeze, and the
    table says why, with the line of the program.

    Analyse the function as it is evaluated: without dropout, with running statistics.

    Args:
      fn: `(params, *args) -> Any`, such as `module.apply` of linen, or for nnx
        `lambda state, x: nnx.merge(graphdef, state)(x)`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`; for batch norm with the running
        statistics, which are pruned with the rest.
      *example_args: pytrees of the same; only shapes and dtypes matter.
      freeze: leaves that shall stay as they are: rules as in `matching`, and `(rule, axis)` for one
        axis only.
      sliceable_inputs: axes of inputs that may be pruned, `(path, axis)`; the first input is "0".

    Raises:
      ValueError: if `freeze` or `sliceable_inputs` names what is not there.
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
        paths = [path for path, x in named_leaves(results) if x is not None]
        for path, axes in zip(paths, program.out_axes, strict=True):
            for axis in axes:
                freeze(axis, f"an axis of output {path or '0'}")
    for axes in of_params.values():
        for axis in axes if id(axes) not in reader.first_use else ():
            freeze(axis, "not read by the function")
    _freeze_asked(frozen, shapes, of_params)

    used = lambda path: reader.first_use.get(id(of_params[path]), len(reader.first_use))
    order = sorted(of_params, key=used)
    names, groups = _groups({path: of_params[path] for path in order} | _as_inputs(of_inputs))
    name_of = {atom: name for name, atom in names.items()}
    inexact = differences(program, of_params, name_of)
    return Structure(
        groups=groups,
        frozen=_reasons({path: of_params[path] for path in order}),
        inexact={
            why: tuple(name for atom, name in name_of.items() if atom in own)
            for why, own in inexact.items()
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
    leaves = [(path, leaf) for path, leaf in named_leaves(tree) if leaf is not None]
    return {path: tuple(Atom(n) for n in getattr(leaf, "shape", ())) for path, leaf in leaves}


def _as_inputs(of_inputs: dict[str, Axes]) -> dict[str, Axes]:
    return {f"input {path}": axes for path, axes in of_inputs.items()}


def _groups(leaves: dict[str, Axes]) -> tuple[dict[str, Atom], dict[str, Neurons]]:
    """The atoms that can be pruned by name, and what they are on. `leaves` in the order of data."""
    members: dict[Atom, dict[Member, int]] = {}
    for path, axes in leaves.items():
        for i, e in enumerate(axes):
            free = dict.fromkeys(atom for atom in atoms(e) if not atom.frozen)
            for place, atom in enumerate(free):
                members.setdefault(atom, {})[Member(path, i)] = place
    members = {
        atom: own
        for atom, own in members.items()
        if not all(path.startswith("input ") for path, _ in own)
    }
    firsts = {atom: next(iter(own.items())) for atom, own in members.items()}
    levels = [
        {atom: form(*first) for atom, first in firsts.items()}
        for form in (
            lambda member, _: member.path.rpartition("/")[0] or member.path,
            lambda member, _: f"{member.path.rpartition('/')[0] or member.path}[{member.axis}]",
            lambda member, _: str(member),
            lambda member, place: f"{member}.{place}",
        )
    ]
    taken = [Counter(level.values()) for level in levels]
    names: dict[str, Atom] = {}
    for atom in members:
        ways = zip(levels, taken, strict=True)
        names[next(level[atom] for level, n in ways if n[level[atom]] == 1)] = atom
    return names, {name: Neurons(a.size, tuple(members[a])) for name, a in names.items()}


def _reasons(leaves: dict[str, Axes]) -> dict[str, tuple[Member, ...]]:
    found: dict[str, dict[Member, None]] = {}
    for path, axes in leaves.items():
        for i, e in enumerate(axes):
            for atom in atoms(e):
                for why in atom.frozen:
                    found.setdefault(why, {}).setdefault(Member(path, i))
    return {why: tuple(members) for why, members in found.items()}


def _freeze_asked(asked: Any, shapes: Params, leaves: Mapping[str, Axes]) -> None:
    if isinstance(asked, str) or not isinstance(asked, Iterable):
        raise TypeError(f"analyze: freeze is a list of rules; got {asked!r}. Write [{asked!r}].")
    for entry in asked:
        rule, axis = entry if isinstance(entry, tuple) else (entry, None)
        check_all_match([rule], shapes)
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


def _sliceable(asked: Sequence[Any], inputs: Mapping[str, Axes]) -> set[tuple[str, int]]:
    found = set()
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
        found.add((path, axis % rank))
    return found
