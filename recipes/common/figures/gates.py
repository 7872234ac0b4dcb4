"""Figures of gates as they learn: what they keep, what it costs, and their values over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from recipes.common.figures.style import COLORS, STYLE, Curve, Look, band, curve, png, steps_locator

LEAST = 1e-3  # the smallest fraction of gates that has a colour of its own


def budgets(
    history: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
    targets: Sequence[Curve],
) -> bytes:
    """PNG of what is kept, expected and at a threshold, beside the targets; and the multiplier."""
    # a colour each, from that after dense: dotted lines are taken
    drawn = {a: Look(c, "-", "o") for a, c in zip(arms, cycle(COLORS[1:]), strict=False)}
    last = history[-1]["step"]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.7), layout="constrained")
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
        figure.legend(*left.get_legend_handles_labels(), loc="outside right upper")
        return png(figure)


def histograms(history: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> bytes:
    """PNG of the values of gates over steps, a panel an arm."""
    columns = min(len(arms), 4)
    rows = -(-len(arms) // columns)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.2 + 2.2 * columns, 0.5 + 2.0 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in panels.flat[len(arms) :]:
            axes.set_visible(False)
        for axes, arm in zip(panels.flat, arms, strict=False):
            steps, counts = curve(history, arm, "histogram")  # (points, seeds, bins)
            fractions = np.maximum(counts.mean(1).T, LEAST)
            edges = [0, *steps], np.linspace(0, 1, len(fractions) + 1)
            image = axes.pcolormesh(
                *edges, fractions, cmap=colormaps["YlGnBu"], norm=LogNorm(LEAST, 1), rasterized=True
            )
            axes.set(title=arm, xlabel="Step")
            axes.xaxis.set_major_locator(steps_locator(3))
        for row in panels:
            row[0].set_ylabel("Gate")
        bar = figure.colorbar(image, ax=panels, shrink=0.85, pad=0.02)
        bar.set_label("Fraction of gates")
        bar.outline.set_visible(False)
        return png(figure)
