"""A structure as text: its groups, what they are on, and what is frozen and why."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.coupling.expressions import kept_entries, places, size

if TYPE_CHECKING:
    from jaxprune.coupling.structure import Structure

WIDTH = 100  # columns
MEMBERS = 8  # members of a group, and axes frozen for one reason, that are written out


def structure(found: Structure) -> str:
    """The table. `of each neuron`: how many weights go with one, if it is the only one to go."""
    rows = [("group", "size", "of each neuron", "on")]
    for name, group in found.groups.items():
        own = _weights_of_one(found, name)
        rows.append((name, f"{group.size:,}", f"{own:,}", _listed(_on(found, name))))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = []
    for name, n, weights, on in rows:
        head = f"{name:<{widths[0]}}  {n:>{widths[1]}}  {weights:>{widths[2]}}  "
        if len(head) <= WIDTH // 2:
            lines += _wrapped(on, head, " " * len(head))
        else:  # names that leave no room: what they are on goes below
            lines += [head, *_wrapped(on, " " * 4, " " * 4)]
    rule = "-" * max(map(len, lines))
    lines = [lines[0], rule, *lines[1:], rule, _total(found)]
    if found.frozen:
        lines.append("frozen:")
    for why, members in found.frozen.items():
        text = f"{why}: {_listed([str(member) for member in members])}"
        lines += _wrapped(text, " " * 2, " " * 4)
    for why, groups in found.inexact.items():
        text = (
            f"{why}: here a pruned neuron of {', '.join(groups)} counts in a masked network and "
            "not in a compacted one: they differ."
        )
        lines += _wrapped(text, "", "  ")
    for primitive, line in found.unknown.items():
        text = (
            f"unknown: there is no rule for '{primitive}' ({line}), and all that it reads is "
            f"frozen. register_rule({primitive!r}, ...) teaches it."
        )
        lines += _wrapped(text, "", "  ")
    return "\n".join(line.rstrip() for line in lines)


def _total(found: Structure) -> str:
    weights = sum(_sizes(found))
    share = prunable(found)
    n = sum(group.size for group in found.groups.values())
    groups = f"{len(found.groups)} group{'s' if len(found.groups) != 1 else ''}"
    return (
        f"{groups} of {n:,} neurons; {share:,} of {weights:,} weights "
        f"({share / max(weights, 1):.1%}) can be pruned"
    )


def prunable(found: Structure) -> int:
    """How many weights go with some neuron of some group."""
    none = {atom: np.zeros(atom.size, bool) for atom in found.atoms.values()}
    left = [
        math.prod(int(kept_entries(e, none).sum()) for e in axes) for axes in found.axes.values()
    ]
    return sum(_sizes(found)) - sum(left)


def _sizes(found: Structure) -> list[int]:
    return [math.prod(map(size, axes)) for axes in found.axes.values()]


def _weights_of_one(found: Structure, name: str) -> int:
    """How many weights the last neuron of a group has."""
    atom = found.atoms[name]
    kept = {atom: np.arange(atom.size) < atom.size - 1}
    left = [
        math.prod(int(kept_entries(e, kept).sum()) for e in axes) for axes in found.axes.values()
    ]
    return sum(_sizes(found)) - sum(left)


def _on(found: Structure, name: str) -> list[str]:
    """The members; an axis that has each neuron n times is marked x n."""
    atom, words = found.atoms[name], []
    for member in found.groups[name].members:
        n = 1
        if member.path in found.axes:
            e = found.axes[member.path][member.axis]
            n = sum(int((own == 0).sum()) for own in places(e, atom))
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
