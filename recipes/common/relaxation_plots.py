"""Figures of continuous relaxation, as PNG: what is left over the stages, and how gates leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from recipes.common.figures.gates import LEAST
from recipes.common.figures.style import STYLE, Look, band, curve, png, steps_locator

History = Sequence[Mapping[str, Any]]


def stages(history: History, drawn: Mapping[str, Look], ends: Sequence[int]) -> bytes:
    """PNG of test accuracy over the steps, and of the FLOPs: relaxed (lines), of what is left.

    Args:
      history: the lines of metrics.jsonl.
      drawn: the look of each arm, dense first.
      ends: the last step of each stage.
    """
    arms = list(drawn)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.9), layout="constrained")
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
        figure.legend(*left.get_legend_handles_labels(), loc="outside right upper")
        return png(figure)


def histograms(history: History, arms: Sequence[str], ends: Sequence[int]) -> bytes:
    """PNG of the values of the gates that are left, over the steps; a panel an arm."""
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.4 + 2.9 * len(arms), 2.6), layout="constrained")
        panels = figure.subplots(1, len(arms), squeeze=False, sharey=True)[0]
        for axes, arm in zip(panels, arms, strict=True):
            steps, counts = curve(history, arm, "histogram")  # (points, seeds, bins)
            fractions = np.maximum(counts.mean(1).T, LEAST)
            edges = [0, *steps], np.linspace(0, 1, len(fractions) + 1)
            image = axes.pcolormesh(
                *edges, fractions, cmap=colormaps["YlGnBu"], norm=LogNorm(LEAST, 1), rasterized=True
            )
            axes.set(title=arm)
            _mark(axes, ends)
        panels[0].set_ylabel("Gate")
        bar = figure.colorbar(image, ax=panels, shrink=0.85, pad=0.02)
        bar.set_label("Fraction of gates")
        bar.outline.set_visible(False)
        return png(figure)


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
