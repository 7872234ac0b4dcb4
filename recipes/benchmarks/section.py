"""What one benchmark hands back: a table, its numbers, and what was asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from recipes.common.timing import Measured, Spread, noise, ratio


class Plan(NamedTuple):
    """How large, and how often: the same for all benchmarks."""

    weights: int
    leaves: int  # kernels that share the weights
    seeds: int  # of the vmapped programs
    repeats: int  # rounds
    compiles: int  # rounds of compilations
    models: tuple[str, ...]  # whose training steps are compiled
    batch_size: int  # examples of a training step
    examples: int  # that a pass of the barriers goes over
    seed: int
    least_seconds: float  # of a sample


class Target(NamedTuple):
    """What a number must come to, and should; at most that, or `at_least`."""

    bound: float
    aim: float | None = None
    at_least: bool = False


class Figure(NamedTuple):
    """A number that something was asked of."""

    name: str
    measured: float
    target: Target

    @property
    def is_met(self) -> bool:
        if self.target.at_least:
            return self.measured >= self.target.bound
        return self.measured <= self.target.bound

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "measured": self.measured,
            "target": self.target.bound,
            "aim": self.target.aim,
            "at_least": self.target.at_least,
            "met": self.is_met,
        }


class Bar(NamedTuple):
    """A ratio in the picture, with the bound that was asked of it."""

    ratio: Spread
    bound: float | None = None


class Section(NamedTuple):
    """One table: `rows` are formatted, each a name and one cell per column."""

    name: str  # its key in summary.json
    headline: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Mapping[str, Any]  # for summary.json
    figures: Sequence[Figure] = ()
    bars: Mapping[str, Bar] = {}
    noise: Spread | None = None  # what the ratio of identical cells may be


def comparison(
    name: str,
    headline: str,
    measured: Mapping[str, Measured],
    baselines: Sequence[str],
    control: str,
    targets: Mapping[str, Target],
    param_bytes: int | None = None,
) -> Section:
    """Times beside those of the `baselines`; `control` is identical to the first one.

    Args:
      targets: cell -> what its ratio to the first baseline must come to.
      param_bytes: what temporary memory is compared with.
    """
    ratios = {
        cell: {to: ratio(measured, cell, to) for to in baselines if to != cell} for cell in measured
    }
    first = {cell: own[baselines[0]] for cell, own in ratios.items() if baselines[0] in own}
    band = noise(measured, control, baselines[0])
    is_step = all(cell.compile_seconds is not None for cell in measured.values())
    numbers = {
        cell: {
            "seconds": _dict(Spread.of(own.seconds)),
            "rounds": len(own.seconds),
            "compile_seconds": own.compile_seconds,
            "temp_bytes": own.temp_bytes,
            "ratio": {to: _dict(spread) for to, spread in ratios[cell].items()},
        }
        for cell, own in measured.items()
    }

    def row(cell: str) -> list[str]:
        own = measured[cell]
        spreads = [ratios[cell].get(to) for to in baselines]
        texts = [cell, digits(1e3 * Spread.of(own.seconds).median)]
        texts += ["1" if spread is None else digits(spread.median) for spread in spreads]
        texts.insert(3, quartiles(spreads[0]))
        if is_step:
            texts += [f"{own.compile_seconds:.2f}", share(own.temp_bytes, param_bytes)]
        return texts

    return Section(
        name=name,
        headline=headline,
        columns=(
            "ms",
            f"/ {baselines[0]}",
            "quartiles",
            *(f"/ {to}" for to in baselines[1:]),
            *(("compile s", "temp") if is_step else ()),
        ),
        rows=[row(cell) for cell in measured],
        numbers={"cells": numbers, "baselines": list(baselines), "noise": _dict(band)},
        figures=[
            Figure(f"{name}: {cell} / {baselines[0]}", first[cell].median, target)
            for cell, target in targets.items()
        ],
        bars={
            cell: Bar(spread, targets[cell].bound if cell in targets else None)
            for cell, spread in first.items()
        },
        noise=band,
    )


def quartiles(spread: Spread | None) -> str:
    """As "low-high"; nothing for None."""
    return "" if spread is None else f"{digits(spread.low)}-{digits(spread.high)}"


def share(part: int | None, whole: int | None) -> str:
    """A part of the whole, as a number; "-" if one is unknown."""
    return "-" if part is None or not whole else f"{part / whole:.3f}"


def megabytes(size: int | None) -> str:
    """Bytes in MB; "-" if unknown."""
    return "-" if size is None else f"{size / 1e6:,.2f}"


def digits(value: float) -> str:
    """Three digits of a number, more if it is large."""
    for decimals, limit in ((2, 10), (1, 100)):
        if round(value, decimals) < limit:
            return f"{value:.{decimals}f}"
    return f"{value:,.0f}"


def _dict(spread: Spread) -> dict[str, float]:
    return spread._asdict()
