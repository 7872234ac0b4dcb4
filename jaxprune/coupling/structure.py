"""The neurons of a function, and the axes that go with each: the result of `analyze`."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxprune.base import Params
from jaxprune.coupling.expressions import Atom, Axes, atoms, kept_entries, places, size
from jaxprune.coupling.reader import Program
from jaxprune.coupling.stated import Axis
from jaxprune.trees import quoted

WIDTH = 100  # columns
MEMBERS = 8  # members of a group, and axes frozen for one reason, that are written out


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
    """The result of `analyze`; it prints as a table.

    Attributes:
      groups: the neurons that can be pruned, by name, in the order of the data. The name of a group
        is the layer that has it first, and its role in attention ("query.heads", "query.dims");
        where a layer has several groups, also the axis ("qkv.axis1").
      frozen: the reasons for which axes can't be pruned, and these axes.
      inexact: where a masked network and a compacted one may differ, and the groups that make it
        so; empty if they compute the same. See `jaxprune.coupling.exactness`.
      unknown: primitives without a rule, by name, and where they are; see
        `structured.register_rule`.
      shapes: the params, as `jax.ShapeDtypeStruct`.
      fn, inputs, outputs: the function that was read, and the shapes of its inputs and outputs.
      axes: the axis expressions of each leaf of the params, by path.
      atoms: the atom of each group.
      program: the jaxpr, as it was read.
      sliceable_inputs: as they were given to `analyze`.
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

        A stated coupling can't say two groups on one axis (heads and their dimensions), nor a group
        on a segment of an axis (concatenations): these groups are left out.
        """
        owners = Counter(
            (path, i) for path, axes in self.axes.items() for i, e in enumerate(axes)
            for _ in set(atoms(e)) & set(self.atoms.values())
        )  # fmt: skip
        stated = {name: self._stated(name) for name in self.groups}
        return {
            name: axes
            for name, axes in stated.items()
            if axes is not None and all(owners[axis[:2]] == 1 for axis in axes)
        }

    def _stated(self, name: str) -> list[Axis] | None:
        """The axes of a group, or None if one of them has more than rows of its neurons."""
        stated = []
        for path, i in self.groups[name].members:
            if path not in self.axes:
                continue
            e = self.axes[path][i]
            neurons = list(places(e, self.atoms[name]))
            if len(neurons) != 1 or (neurons[0] < 0).any():
                return None
            inner = int((neurons[0] != neurons[0][0]).argmax())
            stated.append(Axis(path, i, size(e) // (inner * self.groups[name].size), inner))
        return stated

    def __repr__(self) -> str:
        return _table(self)


def _table(structure: Structure) -> str:
    """The table. `of each neuron`: how many weights go with one, if it is the only one to go."""
    rows = [("group", "size", "of each neuron", "on")]
    for name, group in structure.groups.items():
        atom, last = structure.atoms[name], np.arange(group.size) < group.size - 1
        weights = _n_weights(structure) - _n_weights(structure, {atom: last})
        rows.append((name, f"{group.size:,}", f"{weights:,}", _listed(_on(structure, name))))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = []
    for name, n, weights_of_one, on in rows:
        head = f"{name:<{widths[0]}}  {n:>{widths[1]}}  {weights_of_one:>{widths[2]}}  "
        if len(head) <= WIDTH // 2:
            lines += _wrapped(on, head, " " * len(head))
        else:  # names that leave no room: the axes go below
            lines += [head, *_wrapped(on, " " * 4, " " * 4)]
    rule = "-" * max(map(len, lines))
    lines = [lines[0], rule, *lines[1:], rule, _total(structure)]
    if structure.frozen:
        lines.append("frozen:")
    for why, members in structure.frozen.items():
        lines += _wrapped(f"{why}: {_listed(list(map(str, members)))}", " " * 2, " " * 4)
    for why, groups in structure.inexact.items():
        text = (
            f"{why}: here a pruned neuron of {', '.join(groups)} counts in a masked network and "
            "not in a compacted one: they differ."
        )
        lines += _wrapped(text, "", "  ")
    for primitive, line in structure.unknown.items():
        text = (
            f"unknown: there is no rule for '{primitive}' ({line}), and all that it reads is "
            f"frozen. register_rule({primitive!r}, ...) teaches it."
        )
        lines += _wrapped(text, "", "  ")
    return "\n".join(line.rstrip() for line in lines)


def _total(structure: Structure) -> str:
    none = {atom: np.zeros(atom.size, bool) for atom in structure.atoms.values()}
    weights = _n_weights(structure)
    prunable = weights - _n_weights(structure, none)
    n = sum(group.size for group in structure.groups.values())
    groups = f"{len(structure.groups)} group{'s' if len(structure.groups) != 1 else ''}"
    return (
        f"{groups} of {n:,} neurons; {prunable:,} of {weights:,} weights "
        f"({prunable / max(weights, 1):.1%}) can be pruned"
    )


def _n_weights(structure: Structure, kept: Mapping[Atom, np.ndarray] | None = None) -> int:
    """How many weights are left, if of each atom these neurons are; None for all."""
    count = size if kept is None else (lambda e: int(kept_entries(e, kept).sum()))
    return sum(math.prod(map(count, axes)) for axes in structure.axes.values())


def _on(structure: Structure, name: str) -> list[str]:
    """The members; an axis that has each neuron n times is marked x n."""
    atom, words = structure.atoms[name], []
    for member in structure.groups[name].members:
        n = 1
        if member.path in structure.axes:
            e = structure.axes[member.path][member.axis]
            n = sum(int((neurons == 0).sum()) for neurons in places(e, atom))
        words.append(f"{member}" if n == 1 else f"{member}x{n}")
    return words


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - MEMBERS} more" if len(words) > MEMBERS + 1 else ""
    return " ".join(words[: MEMBERS if more else None]) + more
