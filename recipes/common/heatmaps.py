"""Figures about pairs of networks, as PNG: matrices as heat maps, and losses along paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recipes.common.dead import NOT_MEASURED
from recipes.common.plots import COLORS, STYLE, looks, png

MOST_NUMBERS = 12  # seeds up to which each cell says its value


class Matrix(NamedTuple):
    """One heat map: values (seeds, seeds), how to write one, and the ends of its colours.

    What is nan was not measured.
    """

    values: np.ndarray
    form: str = "{:.1f}"
    low: float = 0.0
    high: float | None = None  # the largest off the diagonal


def heat_maps(matrices: Mapping[str, Matrix]) -> bytes:
    """PNG of matrices side by side, title -> matrix; the diagonal is left blank."""
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(0.4 + 2.75 * len(matrices), 2.9), layout="constrained")
        every_axes = figure.subplots(1, len(matrices), squeeze=False)[0]
        for axes, (title, matrix) in zip(every_axes, matrices.items(), strict=True):
            _heat_map(figure, axes, title, matrix)
        return png(figure)


def _heat_map(figure: Figure, axes: Axes, title: str, matrix: Matrix) -> None:
    seeds = len(matrix.values)
    own = np.eye(seeds, dtype=bool)
    values = np.where(own, np.nan, matrix.values)
    high = np.max(values, initial=0, where=np.isfinite(values))
    high = max(high if matrix.high is None else matrix.high, matrix.low + 1e-9)
    colors: Any = colormaps["YlGnBu"]
    image = axes.imshow(values, cmap=colors, vmin=matrix.low, vmax=high)
    if seeds <= MOST_NUMBERS:
        for i, j in np.argwhere(~own):
            dark = (values[i, j] - matrix.low) / (high - matrix.low) > 0.55
            known = np.isfinite(values[i, j])
            text = matrix.form.format(values[i, j]) if known else NOT_MEASURED
            axes.text(j, i, text, ha="center", va="center", **_ink(seeds, dark))
    axes.set(title=title, xlabel="Seed", ylabel="Seed")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _ink(seeds: int, dark: bool) -> dict[str, Any]:
    return {"fontsize": min(8.0, 52 / seeds), "color": "white" if dark else "#222222"}


class Paths(NamedTuple):
    """One panel: alphas (points,), error of each pair (pairs, points), and others by name."""

    alphas: np.ndarray
    values: np.ndarray
    others: Mapping[str, np.ndarray] = {}


def along_paths(
    panels: Mapping[str, Paths], threshold: float | None = None, kind: str = "seed"
) -> bytes:
    """PNG of test error (%) along the paths between seeds: each pair thin, their mean thick.

    The grey band reaches from the mean of the ends as far up as a stable pair may rise.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(3.5 * len(panels), 3.0), layout="constrained")
        figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr,call-arg]
        every_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, panel), color in zip(every_axes, panels.items(), COLORS, strict=False):
            values = 100 * panel.values
            ends = values[:, [0, -1]].mean()
            if threshold is not None:
                label = f"within {threshold:g} points"
                axes.axhspan(ends, ends + threshold, color="#ececec", zorder=0, label=label)
            axes.plot(panel.alphas, values.T, color=color, alpha=0.25, linewidth=0.7)
            mean = values.mean(0)
            axes.plot(panel.alphas, mean, color=color, linewidth=2.2, label="mean of the pairs")
            for style, (label, other) in zip(("--", ":"), panel.others.items(), strict=False):
                axes.plot(panel.alphas, 100 * other, style, color="#111111", label=label)
            axes.set(title=title, xlabel=f"From one {kind} (0) to another (1)")
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
        every_axes[0].set_ylabel("Test error (%)")
        handles, labels = every_axes[0].get_legend_handles_labels()
        columns = min(len(labels), 2 * len(panels))  # as many as there is room for
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7.5)
        return png(figure)


class Forks(NamedTuple):
    """One arm: instability of every pair, and accuracy of every child, at each fork."""

    instability: Sequence[np.ndarray]  # fraction of errors, one (pairs,) a fork
    accuracy: Sequence[np.ndarray]  # fraction, one (children,) a fork


def over_forks(steps: Sequence[int], arms: Mapping[str, Forks], threshold: float) -> bytes:
    """PNG of instability and of accuracy against the step of the fork; forks are evenly spaced."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        at = np.arange(len(steps))
        drawn = looks(arms)
        for arm, forks in arms.items():
            color = drawn[arm].color
            shift = 0.05 * (list(arms).index(arm) - (len(arms) - 1) / 2)
            for axes, each in ((left, forks.instability), (right, forks.accuracy)):
                for x, values in zip(at, each, strict=True):
                    dots = np.full(len(values), x + shift)
                    axes.plot(dots, 100 * values, ".", color=color, alpha=0.35, markersize=4)
                means = [100 * values.mean() for values in each]
                axes.plot(at + shift, means, "o-", color=color, markersize=4, label=arm)
        label = f"stable below {threshold:g} points"
        left.axhline(threshold, color="#111111", linewidth=1.0, linestyle="--", label=label)
        left.set(title="Instability of test error (points)")
        right.set(title="Test accuracy of the children (%)")
        left.set_ylim(bottom=min(-0.02 * left.get_ylim()[1], left.get_ylim()[0]))
        for axes in (left, right):
            axes.set_xlabel("Step of the fork")
            axes.set_xticks(at, [f"{step:,}" for step in steps])
        left.legend(loc="best")
        return png(figure)
