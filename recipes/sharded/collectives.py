"""The communication between devices of a compiled program, read from its HLO."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8}
_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(?:-start)?\(")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Moved(NamedTuple):
    """One kind of collective: how many a step makes, and the bytes a device gets from them."""

    calls: int
    bytes: int


class Program(NamedTuple):
    """The collectives of a program, by kind.

    Loops that are known to run n times count n times; others, the search for a threshold, once.
    """

    always: dict[str, Moved]
    in_branches: dict[str, Moved]  # of a `lax.cond`: in a step, an update of the masks


def read(hlo: str) -> Program:
    """The collectives in the optimized HLO text of a program for one device."""
    bodies, entry = _computations(hlo)
    found: list[dict[str, list[int]]] = [defaultdict(lambda: [0, 0]) for _ in range(2)]

    def walk(name: str, times: int, in_branch: bool) -> None:
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                count = found[in_branch][match[2]]
                count[0] += times
                count[1] += times * _size(match[1])
            trips = _TRIPS.search(line) if " while(" in line else None
            for called in _CALLED.findall(line):
                walk(called, times * (int(trips[1]) if trips else 1), in_branch)
            for branch in _branches(line):
                walk(branch, times, True)

    walk(entry, 1, False)
    always, in_branches = ({kind: Moved(*n) for kind, n in own.items()} for own in found)
    return Program(always, in_branches)


def total(moved: dict[str, Moved]) -> Moved:
    """The sum over all kinds."""
    return Moved(sum(m.calls for m in moved.values()), sum(m.bytes for m in moved.values()))


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    own: list[str] = []
    entry = ""
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            own = bodies.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        else:
            own.append(line)
    return bodies, entry


def _branches(line: str) -> Iterator[str]:
    for several, one in _BRANCHES.findall(line):
        yield from re.findall(r"[\w.\-]+", several) if several else (one,)


def _size(result: str) -> int:
    """Bytes of a result, be it one array or a tuple of them."""
    sizes = 0
    for dtype, shape in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", result):
        width = _BYTES.get(dtype) or int(re.sub(r"\D", "", dtype)) // 8
        sizes += width * math.prod(int(n) for n in shape.split(",") if n)
    return sizes
