"""Figures of gates as they learn, as PNG: what they keep, what it costs, and their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from recipes.common.figures.style import (
    COLORS,
    Curve,
    Look,
    band,
    canvas,
    curve,
    steps_locator,
)

History = Sequence[Mapping[str, Any]]

LEAST = 1e-3  # the smallest fraction of gates that has a color of its own


def budgets(
    history: History,
    arms: Sequence[str],
    targets: Sequence[Curve],
) -> bytes:
    """PNG of what is kept, expected and at a threshold, beside the targets; and the multiplier."""
    # a color each, from that after dense: dotted lines are taken
    drawn = {a: Look(c, "-", "o") for a, c in zip(arms, cycle(COLORS[1:]), strict=False)}
    last = history[-1]["step"]
    with canvas(7.6, 2.7) as figure:
        left, right = figure.subplots(1, 2)
        for steps, values in targets:
            left.plot(steps, 100 * values, color="#b0b0b0", linewidth=3.5, zorder=1)
        for arm in arms:
            color = drawn[arm].color
            band(left, curve(history, arm, "expected"), arm, drawn[arm])
            steps, open_ = curve(history, arm, "open")
            left.plot(steps, 100 * open_.mean(1), ":", color=color, linewidth=1.2)
            steps, price = curve(history, arm, "multiplier")
            right.plot(steps, price.mean(1), drawn[arm].line, color=color)
            right.fill_between(steps, price.min(1), price.max(1), color=color, alpha=0.18, lw=0)
        left.set(title="Kept of the budget (%)", xlabel="Step", ylim=(-2, 102))
        right.set(title="Multiplier", xlabel="Step")
        for axes in (left, right):
            axes.set_xlim(0, last)
            axes.xaxis.set_major_locator(steps_locator(5))
        left.plot([], [], color="#b0b0b0", linewidth=3.5, label="target")
        left.plot([], [], "-", color="#333333", label="expected")
        left.plot([], [], ":", color="#333333", linewidth=1.2, label="at a threshold")
        figure.key(left)
    return figure.png


def histograms(history: History, arms: Sequence[str]) -> bytes:
    """PNG of the values of gates over steps, a panel an arm."""
    columns = min(len(arms), 4)
    rows = -(-len(arms) // columns)
    with canvas(1.2 + 2.2 * columns, 0.5 + 2.0 * rows, grid=False) as figure:
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in panels.flat[len(arms) :]:
            axes.set_visible(False)
        for axes, arm in zip(panels.flat, arms, strict=False):
            image = _values(axes, history, arm)
            axes.set(title=arm, xlabel="Step")
            axes.xaxis.set_major_locator(steps_locator(3))
        for row in panels:
            row[0].set_ylabel("Gate")
        _color_bar(figure, image, panels)
    return figure.png


def stages(history: History, drawn: Mapping[str, Look], ends: Sequence[int]) -> bytes:
    """PNG of test accuracy over the steps, and of the FLOPs: relaxed (lines), of what is left.

    Args:
      history: the lines of metrics.jsonl.
      drawn: the look of each arm, dense first.
      ends: the last step of each stage.
    """
    arms = list(drawn)
    with canvas(7.6, 2.9) as figure:
        left, right = figure.subplots(1, 2)
        for arm in arms:
            band(left, curve(history, arm, "test_accuracy"), arm, drawn[arm])
            if arm == arms[0]:  # dense
                continue
            band(right, curve(history, arm, "relaxed"), arm, drawn[arm])
            steps, flops = curve(history, arm, "flops")
            right.step(steps, 100 * flops.mean(1), ":", color=drawn[arm].color, linewidth=1.3)
        left.set(title="Test accuracy (%)", ylim=_limits(history, arms))
        right.set(title="FLOPs (% of dense)", ylim=(-2, 104))
        for axes in (left, right):
            _mark(axes, ends)
        left.plot([], [], "-", color="#333333", label="relaxed")
        left.plot([], [], ":", color="#333333", linewidth=1.3, label="not cut")
        figure.key(left)
    return figure.png


def stage_histograms(history: History, arms: Sequence[str], ends: Sequence[int]) -> bytes:
    """PNG of the values of the gates that are left, over the steps; a panel an arm."""
    with canvas(1.4 + 2.9 * len(arms), 2.6, grid=False) as figure:
        panels = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
        for axes, arm in zip(panels, arms, strict=True):
            image = _values(axes, history, arm)
            axes.set(title=arm)
            _mark(axes, ends)
        panels[0].set_ylabel("Gate")
        _color_bar(figure, image, panels)
    return figure.png


def _values(axes: Axes, history: History, arm: str) -> QuadMesh:
    """The fraction of the gates of an arm with each value (rows), over the steps (columns)."""
    steps, counts = curve(history, arm, "histogram")  # (points, seeds, bins)
    fractions = np.maximum(counts.mean(1).T, LEAST)
    edges = [0, *steps], np.linspace(0, 1, len(fractions) + 1)
    return axes.pcolormesh(
        *edges, fractions, cmap=colormaps["YlGnBu"], norm=LogNorm(LEAST, 1), rasterized=True
    )


def _color_bar(figure: Figure, image: QuadMesh, panels: Any) -> None:
    """The scale of `_values`, beside the panels."""
    bar = figure.colorbar(image, ax=panels, shrink=0.85, pad=0.02)
    bar.set_label("Fraction of gates")
    bar.outline.set_visible(False)


def _mark(axes: Axes, ends: Sequence[int]) -> None:
    """The stages."""
    for end in ends[:-1]:
        axes.axvline(end, color="#b0b0b0", linewidth=0.8, zorder=1.5)
    axes.set(xlabel="Step", xlim=(0, ends[-1]))
    axes.xaxis.set_major_locator(steps_locator(4))


def _limits(history: History, arms: Sequence[str]) -> tuple[float, float]:
    """Room for all but the first stage, where accuracy climbs from chance."""
    settled = []
    for arm in arms:
        steps, values = curve(history, arm, "test_accuracy")
        settled.append(100 * values[len(steps) // 5 :])
    low, high = min(v.min() for v in settled), max(v.max() for v in settled)
    margin = max(0.1 * (high - low), 0.5)
    return max(0.0, low - margin), min(100.5, high + margin)
