"""The result of a benchmark: a table, its numbers, its targets; the report and the picture of all.

The picture shows every ratio to its baseline, beside the ratios of identical programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console

from recipes.common import folder, report
from recipes.common.figures.style import COLORS, Canvas, canvas
from recipes.common.timing import Measured, Spread, noise, ratio

FIGURE_COLUMNS = ("measured", "target", "aim", "")
CAPTION = """\
Ratios to the first line of each table: medians, and a whisker between the quartiles. The grey band
is noise. A black tick is what was asked for: met where the bar is blue, missed where it is orange.\
"""
WIDTH = 110  # of tables that go to a file
NOTE = """\
The cells of a table are timed in one process, in another random order each round; a ratio is one
of two times of the same round: the median and its quartiles. Of two identical programs (A/A) one
is the baseline, and the other's quartiles (or their inverses) are noise: an idle step is held to
it. Updates follow a rising sparsity, one after the other. `temp` is the memory of a program beside
its arguments and results, in sizes of the params. Slow cells are in few rounds.\
"""
MET, MISSED, NO_BOUND = COLORS[2], COLORS[1], COLORS[0]
BAND = "#d8d8d8"


class Plan(NamedTuple):
    """Sizes and repetitions, the same for all benchmarks."""

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
    """The bound of a number, and the aim; an upper bound unless `at_least`."""

    bound: float
    aim: float | None = None
    at_least: bool = False


class Figure(NamedTuple):
    """A number with a target."""

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
    """A ratio in the picture, with its bound."""

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
    """Times beside those of the `baselines`; `control` is identical to the first baseline.

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
            "seconds": Spread.of(own.seconds)._asdict(),
            "rounds": len(own.seconds),
            "compile_seconds": own.compile_seconds,
            "temp_bytes": own.temp_bytes,
            "ratio": {to: spread._asdict() for to, spread in ratios[cell].items()},
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
        numbers={"cells": numbers, "baselines": list(baselines), "noise": band._asdict()},
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


# --- the report -----------------------------------------------------------------------------------


def to_terminal(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table under its title."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(f"[bold]{title}", report.terminal_table(columns, rows), sep="\n")


def to_markdown(
    title: str, sections: Sequence[Section], about: Sequence[str], notes: Sequence[str]
) -> str:
    """The content of report.md: paragraphs before the tables and after them."""
    tables = [
        f"## {section.headline}\n\n{report.markdown_table(section.columns, section.rows)}"
        for section in sections
    ]
    last = f"All numbers are in `{folder.SUMMARY}`.\n"
    return "\n\n".join((f"# {title}", *about, *tables, *notes, last))


def figure_rows(figures: Sequence[Figure]) -> list[list[str]]:
    """Each target beside the number that was measured, under `FIGURE_COLUMNS`."""
    return [
        [
            figure.name,
            f"{figure.measured:.3g}",
            f"{'≥' if figure.target.at_least else '≤'}{figure.target.bound:.3g}",
            "" if figure.target.aim is None else f"{figure.target.aim:g}",
            "met" if figure.is_met else "missed",
        ]
        for figure in figures
    ]


# --- the picture ----------------------------------------------------------------------------------


def ratios(sections: Sequence[Section]) -> bytes:
    """PNG of horizontal bars from 1 to each ratio (log axis), a panel a section.

    A whisker spans the quartiles, a black tick is the bound, the band what identical programs
    give.
    """
    shown = [section for section in sections if section.bars]
    rows = [len(section.bars) for section in shown]
    with canvas(7.0, 0.75 * len(shown) + 0.24 * sum(rows)) as figure:
        panels = figure.subplots(len(shown), squeeze=False, height_ratios=rows)[:, 0]
        for axes, section in zip(panels, shown, strict=True):
            _panel(axes, section)
        _legend(figure)
    return figure.png


def _legend(figure: Canvas) -> None:
    meanings = ((MET, "within its bound (tick)"), (MISSED, "above it"), (NO_BOUND, "no bound"))
    patches = [Patch(color=color, label=label) for color, label in meanings]
    patches.append(Patch(color=BAND, label="noise of twins"))
    figure.legend(handles=patches, loc="outside upper center", ncols=4, frameon=False)


def _panel(axes: Axes, section: Section) -> None:
    if section.noise:
        axes.axvspan(section.noise.low, section.noise.high, color=BAND, zorder=0)
    for row, (spread, bound) in enumerate(section.bars.values()):
        is_met = bound is None or spread.median <= bound
        color = NO_BOUND if bound is None else MET if is_met else MISSED
        axes.barh(row, spread.median - 1, left=1, height=0.6, color=color)
        axes.plot([spread.low, spread.high], [row, row], color="#222222", linewidth=1)
        if bound is not None:
            axes.plot([bound], [row], marker="|", markersize=11, color="black")
        place = axes.get_yaxis_transform()  # across the panel in x, rows in y
        axes.text(1.08, row, digits(spread.median), transform=place, ha="right", va="center")
    _log_axis(axes, [x for bar in section.bars.values() for x in (*bar.ratio, bar.bound or 1)])
    axes.axvline(1, color="#222222", linewidth=0.8)
    axes.set_yticks(np.arange(len(section.bars)), list(section.bars))
    axes.set_title(section.headline)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _log_axis(axes: Axes, shown: Sequence[float]) -> None:
    low, high = min(0.9, 0.9 * min(shown)), max(1.5, 1.1 * max(shown))
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    few = high / low > 5
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1, 1.2, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
