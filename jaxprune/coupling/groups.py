"""The neurons that were found, by name, and what is frozen, by reason."""

from __future__ import annotations

from collections import Counter

from jaxprune.coupling.expressions import Atom, Axes, atoms
from jaxprune.coupling.structure import Member, Neurons


def grouped(leaves: dict[str, Axes]) -> tuple[dict[str, Atom], dict[str, Neurons]]:
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


def reasons(leaves: dict[str, Axes]) -> dict[str, tuple[Member, ...]]:
    found: dict[str, dict[Member, None]] = {}
    for path, axes in leaves.items():
        for i, e in enumerate(axes):
            for atom in atoms(e):
                for why in atom.frozen:
                    found.setdefault(why, {}).setdefault(Member(path, i))
    return {why: tuple(members) for why, members in found.items()}
