"""The neurons that can be pruned, by name, and the frozen axes, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from jaxprune.coupling.expressions import Atom, Axes, atoms, has_single, places
from jaxprune.coupling.structure import Member, Neurons
from jaxprune.coupling.uses import Uses
from jaxprune.prunable.rules import matches
from jaxprune.trees import quoted

SINGLE = "one neuron that is read apart from the others, such as h[:, 0]"


def named(leaves: dict[str, Axes], uses: Uses) -> dict[str, Atom]:
    """The atoms that can be pruned, by name; `leaves` in the order of data.

    The name is the layer that has them first, with their role if they have one
    ("attention/query.heads"); where a layer has several atoms, with the axis, and on one axis with
    the place: "qkv.axis1", "qkv.axis1.part0". It has no character that a glob reads in another way.
    """
    members = _members(leaves)
    roles = _roles({atom: _extent(atom, axes, leaves) for atom, axes in members.items()}, uses)

    def layer(path: str) -> str:
        parent = path.rpartition("/")[0]
        return path if parent in ("", "params") else parent

    def ways(atom: Atom) -> list[str]:
        (path, axis), place = next(iter(members[atom].items()))
        role = f".{roles[atom]}" if atom in roles else ""
        return [
            f"{layer(path)}{role}",
            f"{layer(path)}{role or f'.axis{axis}'}",
            f"{layer(path)}{role}.axis{axis}.part{place}",
            f"{path}{role}.axis{axis}",
            f"{path}{role}.axis{axis}.part{place}",
        ]

    levels = {atom: ways(atom) for atom in members}
    taken = [Counter(names[i] for names in levels.values()) for i in range(5)]
    return {
        next(name for name, n in zip(names, taken, strict=True) if n[name] == 1): atom
        for atom, names in levels.items()
    }


def grouped(leaves: dict[str, Axes], names: Mapping[str, Atom]) -> dict[str, Neurons]:
    """The neurons of each name and their axes; without neurons that were frozen since."""
    members = _members(leaves)
    return {
        name: Neurons(atom.size, tuple(members[atom]))
        for name, atom in names.items()
        if atom in members
    }


def matches_group(rule: Any, name: str) -> bool:
    """Whether a rule, a name or a glob, means the group called `name`."""
    return isinstance(rule, str) and matches(rule, name, None)


def chosen(rules: Any, names: Iterable[str]) -> list[str]:
    """The names of groups that one of the rules matches, in their order.

    Raises:
      TypeError: if the rules are no list of strings.
      ValueError: if one of them matches no group.
    """
    if isinstance(rules, str) or not all(isinstance(rule, str) for rule in rules):
        raise TypeError(f'groups is a list of names or globs, such as ["*.heads"]; got {rules!r}.')
    names = list(names)
    for rule in rules:
        if not any(matches_group(rule, name) for name in names):
            have = [(name, None) for name in names]
            raise ValueError(f"the rule {rule!r} matches no group; the groups are {quoted(have)}.")
    return [name for name in names if any(matches_group(rule, name) for rule in rules)]


def _members(leaves: dict[str, Axes]) -> dict[Atom, dict[Member, int]]:
    """By atom that can be pruned the axes that it is on, and its place among the atoms there."""
    members: dict[Atom, dict[Member, int]] = {}
    for path, axes in leaves.items():
        for i, e in enumerate(axes):
            free = dict.fromkeys(atom for atom in atoms(e) if not atom.frozen)
            for place, atom in enumerate(free):
                members.setdefault(atom, {})[Member(path, i)] = place
    return {
        atom: axes
        for atom, axes in members.items()
        if not all(path.startswith("input ") for path, _ in axes)
    }


def _extent(atom: Atom, axes: Iterable[Member], leaves: dict[str, Axes]) -> tuple[int, int]:
    """On how many axes an atom is, and on how many entries of these."""
    parts = (part for path, i in axes for part in places(leaves[path][i], atom))
    return len(tuple(axes)), sum(int((part >= 0).sum()) for part in parts)


def _roles(members: Mapping[Atom, tuple[int, int]], uses: Uses) -> dict[Atom, str]:
    """Of attention: heads, the queries that share one, and the dimensions of queries and keys.

    Heads are on queries and on keys; queries that share a head are on fewer leaves than heads, or
    on fewer entries of them (a fused kernel), or are left by both products.
    """
    roles = {atom: "dims" for atom in uses.dims if atom in members}
    roles |= {atom: "queries" for atom in uses.queries if atom in members}
    for product in uses.heads:
        n_axes = {atom: members[atom] for atom in product if atom in members}
        most = max(n_axes.values(), default=(0, 0))
        roles |= {atom: "heads" if n == most else "queries" for atom, n in n_axes.items()}
    return roles


def reasons(leaves: dict[str, Axes]) -> dict[str, tuple[Member, ...]]:
    """Why neurons can't be pruned, and the axes that they are on.

    A neuron that was cut off by itself is no group, since a group of one has nothing to choose:
    on an axis with other neurons, which can be pruned, the table says where it is.
    """
    frozen: dict[str, dict[Member, None]] = {}
    for path, axes in leaves.items():
        for i, e in enumerate(axes):
            here = list(atoms(e))
            single = [SINGLE] if has_single(e) and not all(atom.frozen for atom in here) else []
            for why in [*(why for atom in here for why in atom.frozen), *single]:
                frozen.setdefault(why, {}).setdefault(Member(path, i))
    return {why: tuple(members) for why, members in frozen.items()}
