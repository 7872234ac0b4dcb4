"""What `analyze` finds: the neurons of a function, and the axes that go with each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxprune.base import Params
from jaxprune.coupling import table
from jaxprune.coupling.expressions import Atom, Axes, atoms, places, size
from jaxprune.coupling.reader import Program
from jaxprune.coupling.stated import Axis
from jaxprune.trees import quoted


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
        after the layer that is first to have it, and its role in attention ("query.heads",
        "query.dims"); where a layer has several, with the axis ("qkv.axis1").
      frozen: the reasons for which axes can't be pruned, and these axes.
      inexact: where a masked network and a compacted one may differ, and the groups that make it
        so; empty if they compute the same. See `jaxprune.coupling.exactness`.
      unknown: primitives without a rule, by name, and where they are; see
        `structured.register_rule`.
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

    def size_of(self, group: str) -> int:
        """How many neurons a group has; ValueError if there is no such group."""
        if group not in self.groups:
            have = [(name, None) for name in self.groups]
            raise ValueError(f"there is no group {group!r}; the groups are {quoted(have)}.")
        return self.groups[group].size

    def coupling(self) -> dict[str, list[Axis]]:
        """The groups as a coupling, for `analysis.match_weights` and `permute`.

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
