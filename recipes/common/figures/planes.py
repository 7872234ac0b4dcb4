"""Planes of losses as contour plots with the models marked, losses along lines, and curvature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from recipes.common.figures.style import COLORS, canvas

BANDS = 18
MOST = 10_000  # the largest loss that has a color of its own, as a multiple of the smallest


class Mark(NamedTuple):
    """A model on a plane."""

    label: str
    x: float
    y: float


class Panel(NamedTuple):
    """A plane of losses: `losses` (len(ys), len(xs)), positive; nan and inf stay blank."""

    xs: np.ndarray
    ys: np.ndarray
    losses: np.ndarray
    marks: Sequence[Mark] = ()


class Line(NamedTuple):
    """Values (points,) between two models, at alphas from 0 to 1."""

    label: str
    alphas: np.ndarray
    values: np.ndarray


def contours(panels: Mapping[str, Panel], label: str, xlabel: str, ylabel: str) -> bytes:
    """PNG of planes side by side, title -> panel, in the same colors on a logarithmic scale."""
    with canvas(0.9 + 3.05 * len(panels), 3.25, layout="compressed", grid=False) as figure:
        every_axes = figure.subplots(1, len(panels), squeeze=False)[0]
        _contours(figure, every_axes, panels, label)
        for axes in every_axes:
            axes.set(xlabel=xlabel)
        every_axes[0].set(ylabel=ylabel)
    return figure.png


def planes_and_lines(
    panels: Mapping[str, Panel], label: str, lines: Mapping[str, Sequence[Line]], ylabel: str
) -> bytes:
    """PNG of planes above, title -> panel, and below each the lines with the same title."""
    with canvas(0.9 + 3.05 * len(panels), 5.4, grid=False) as figure:
        rows = figure.subplots(
            2, len(panels), squeeze=False, gridspec_kw={"height_ratios": (3, 1.8)}
        )
        for axes in rows[1, 1:]:
            axes.sharey(rows[1, 0])
        _contours(figure, rows[0], panels, label)
        for axes in rows[0]:
            axes.set(xlabel="Distance in weight space")
        for axes, title in zip(rows[1], panels, strict=True):
            _lines(axes, lines[title])
        rows[0, 0].set(ylabel="Distance in weight space")
        rows[1, 0].set(ylabel=ylabel)
        rows[1, 0].legend(loc="best", fontsize=8)
    return figure.png


def square(marks: Sequence[Mark], points: int, margin: float = 0.35) -> tuple[Any, Any]:
    """Coordinates (xs, ys), each (points,), of a square grid around all marks."""
    at = np.array([[mark.x, mark.y] for mark in marks])
    middle = (at.min(0) + at.max(0)) / 2
    reach = (0.5 + margin) * np.ptp(at, axis=0).max()
    xs, ys = (np.linspace(m - reach, m + reach, points, dtype=np.float32) for m in middle)
    return xs, ys


def _contours(figure: Figure, every_axes: Any, panels: Mapping[str, Panel], label: str) -> None:
    shown = [np.where(np.isfinite(p.losses), p.losses, np.nan) for p in panels.values()]
    # The upper end is what most of a plane stays below: walls would take all colors. So would
    # cross-entropy that goes on falling as the weights grow beyond the models.
    high = max(np.nanquantile(values, 0.97) for values in shown)
    low = max(min(np.nanmin(values) for values in shown), high / MOST, 1e-30)
    high = max(high, 1.5 * low)
    levels = np.linspace(np.log10(low), np.log10(high), BANDS + 1)
    image = None
    for axes, (title, panel), values in zip(every_axes, panels.items(), shown, strict=True):
        logs = np.log10(np.clip(values, low, high))  # what lies between points, lies so in logs
        logs = np.clip(logs, levels[0], levels[-1])  # rounding
        image = axes.contourf(panel.xs, panel.ys, logs, levels, cmap="viridis")
        thin = {"colors": "white", "linewidths": 0.35, "alpha": 0.55, "linestyles": "solid"}
        axes.contour(panel.xs, panel.ys, logs, levels[1:-1], **thin)
        for mark in panel.marks:
            _mark(axes, mark, panel)
        axes.set(title=title, aspect="equal")
        axes.tick_params(length=2)
    assert image is not None
    bar = figure.colorbar(image, ax=list(every_axes), pad=0.015, aspect=26)
    bar.set_label(label)
    bar.outline.set_visible(False)
    steps = (1.0, 2.0, 5.0) if high < 50 * low else (1.0, 3.0) if high < 5000 * low else (1.0,)
    ticks = [t for t in LogLocator(10, steps).tick_values(low, high) if low <= t <= high]
    bar.set_ticks(list(np.log10(ticks)), labels=[f"{tick:.6g}" for tick in ticks])
    bar.ax.tick_params(length=2)


def _mark(axes: Axes, mark: Mark, panel: Panel) -> None:
    axes.plot(mark.x, mark.y, "o", color="white", markeredgecolor="#111111", markersize=5)
    place = (mark.x - panel.xs[0]) / (panel.xs[-1] - panel.xs[0])  # a label stays inside
    above = mark.y > (panel.ys[0] + panel.ys[-1]) / 2
    text = axes.annotate(
        mark.label,
        (mark.x, mark.y),
        xytext=(0, 7 if above else -7),
        textcoords="offset points",
        ha="left" if place < 0.35 else "right" if place > 0.65 else "center",
        va="bottom" if above else "top",
        fontsize=8,
        color="white",
        fontweight="bold",
    )
    text.set_path_effects([patheffects.withStroke(linewidth=1.8, foreground="#111111")])


def _lines(axes: Axes, lines: Sequence[Line]) -> None:
    for color, style, line in zip(COLORS[1:], ("-", "--", ":"), lines, strict=False):
        axes.plot(line.alphas, line.values, style, color=color, label=line.label)
    axes.set(xlabel="From one seed (0) to another (1)", xlim=(0, 1))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
    axes.grid(True)


LOWEST = 1e-7  # the density at which the plot ends, as a part of the highest


class Curvature(NamedTuple):
    """One arm: the largest eigenvalues (seeds, k), and the density at each point of a grid."""

    eigenvalues: np.ndarray
    grid: np.ndarray  # (points,)
    density: np.ndarray  # (seeds, points)


def curvature(arms: Mapping[str, Curvature]) -> bytes:
    """PNG of the largest eigenvalues (standard deviation over seeds) and of the densities.

    Densities are on a logarithmic scale: the mean over seeds, and a band from the lowest to the
    highest.
    """
    with canvas(7.0, 2.9) as figure:
        left, right = figure.subplots(1, 2)
        width = 0.8 / len(arms)
        for i, (color, (arm, own)) in enumerate(zip(COLORS, arms.items(), strict=False)):
            mean = own.eigenvalues.mean(0)
            spread = own.eigenvalues.std(0, ddof=1) if len(own.eigenvalues) > 1 else None
            places = np.arange(1, len(mean) + 1) + (i - (len(arms) - 1) / 2) * width
            error = {"elinewidth": 0.8, "ecolor": "#333333"}
            left.bar(places, mean, width, yerr=spread, color=color, label=arm, error_kw=error)
            density = own.density.mean(0)
            right.semilogy(own.grid, density, color=color, label=arm)
            low, high = own.density.min(0), own.density.max(0)
            right.fill_between(own.grid, low, high, color=color, alpha=0.18, linewidth=0)
        highest = max(own.density.mean(0).max() for own in arms.values())
        right.set_ylim(LOWEST * highest, 3 * highest)
        left.set(title="Largest eigenvalues of the Hessian", xlabel="Rank")
        left.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        left.grid(axis="x", visible=False)
        right.set(title="Density of all eigenvalues", xlabel="Eigenvalue")
        left.legend(loc="best")
    return figure.png
