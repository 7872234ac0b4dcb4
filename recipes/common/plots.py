"""Figures of a run, as PNG: training curves with a band over seeds, density by layer."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#808080",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "savefig.dpi": 200,
}
# From the palette of Okabe and Ito (2008): told apart by all eyes, and in print.
COLORS = ("#555555", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")

Curve = tuple[Sequence[int], np.ndarray]  # steps (points,), values (points, seeds)


def training_curves(
    accuracy: Mapping[str, Curve],
    sparsity: Mapping[str, Curve],
    pruned_between: tuple[int, int] | None = None,
) -> bytes:
    """PNG of test accuracy and of sparsity over steps, each arm's mean and its range over seeds.

    `pruned_between` shades the steps in which the masks change.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, curves, title in (
            (left, accuracy, "Test accuracy (%)"),
            (right, sparsity, "Sparsity (%)"),
        ):
            for color, label in zip(COLORS, accuracy, strict=False):  # an arm has one colour
                if label in curves:
                    _band(axes, curves[label], label, color)
            if pruned_between:
                axes.axvspan(*pruned_between, color="#efefef", zorder=0, label="pruning")
            axes.set(title=title, xlabel="Step")
            axes.set_xlim(0, max(max(steps) for steps, _ in accuracy.values()))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        left.set_ylim(*_accuracy_limits(accuracy))
        right.set_ylim(-2, 102)
        left.legend(loc="best")
        return _png(figure)


def layer_density(layers: Mapping[str, np.ndarray]) -> bytes:
    """PNG of bars: the percentage of each layer's weights that is kept; `layers` path -> (seeds,).

    The line on a bar is one standard deviation over seeds to either side.
    """
    density = {path: 100 * np.asarray(values) for path, values in layers.items()}
    means = [values.mean() for values in density.values()]
    spread = [values.std(ddof=1) if values.size > 1 else 0.0 for values in density.values()]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 0.8 + 0.28 * len(density)), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(len(density))
        axes.barh(rows, means, xerr=spread, height=0.62, color=COLORS[1], ecolor="#333333")
        for row, mean, deviation in zip(rows, means, spread, strict=True):
            text = f" {mean:.3g}"
            axes.text(mean + deviation, float(row), text, va="center", fontsize=8, color="#333333")
        axes.set_yticks(rows, [path.removesuffix("/kernel") for path in density])
        axes.set(title="Weights kept (%), by layer")
        axes.set_xlim(0, min(112, 1.12 * (max(means) + max(spread)) + 0.01))
        axes.margins(y=0.02)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        return _png(figure)


def _band(axes: Axes, curve: Curve, label: str, color: str) -> None:
    steps, values = np.asarray(curve[0]), 100 * np.asarray(curve[1])
    axes.plot(steps, values.mean(1), color=color, label=label)
    axes.fill_between(steps, values.min(1), values.max(1), color=color, alpha=0.18, linewidth=0)


def _accuracy_limits(curves: Mapping[str, Curve]) -> tuple[float, float]:
    """Room for all but the first fifth, where accuracy climbs from chance and would dwarf it."""
    settled = [100 * np.asarray(values)[len(steps) // 5 :] for steps, values in curves.values()]
    low, high = min(v.min() for v in settled), max(v.max() for v in settled)
    margin = max(0.1 * (high - low), 0.5)
    return max(0.0, low - margin), min(100.5, high + margin)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def curve(records: Sequence[Mapping[str, Any]], arm: str, key: str) -> Curve:
    """The steps and values of `records[i][arm][key]`, where it was logged."""
    points = [(record["step"], record[arm][key]) for record in records if key in record[arm]]
    steps, values = zip(*points, strict=True)
    return steps, np.asarray(values)
