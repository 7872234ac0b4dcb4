"""The picture of a run: every ratio to its baseline, beside what identical programs give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from recipes.benchmarks.section import Section, digits
from recipes.common.figures.style import COLORS, canvas

MET, MISSED, NO_BOUND = COLORS[2], COLORS[1], COLORS[0]
BAND = "#d8d8d8"


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


def _legend(figure: Figure) -> None:
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
