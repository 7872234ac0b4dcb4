"""Figures of masks that are judged by training under them, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recipes.common.curvature import BINS
from recipes.common.figures.left import PER_ROW, dense_line, percent_axis
from recipes.common.figures.style import COLORS, Curve, band, canvas, looks


def curves(
    accuracy: Mapping[str, Curve],
    instability: Mapping[str, Curve],
    dense: Mapping[str, np.ndarray],
    threshold: float,
) -> bytes:
    """PNG of test accuracy and of instability against weights left, an arm a line.

    Args:
      accuracy, instability: fractions left (points,), values (points, seeds) as fractions.
      dense: "test_accuracy" and "error_instability" of dense networks (seeds,).
      threshold: points below which training is stable.
    """
    drawn = looks(["dense", *accuracy])
    with canvas(9.0, 3.3) as figure:
        left, right = figure.subplots(1, 2)
        for axes, arms, of_dense, title in (
            (left, accuracy, dense["test_accuracy"], "Test accuracy (%)"),
            (right, instability, dense["error_instability"], "Instability of test error (points)"),
        ):
            dense_line(axes, of_dense, drawn["dense"])
            for arm, (at, values) in arms.items():
                percents = [100 * share for share in at]
                band(axes, (percents, values), arm, drawn[arm], points=True)
            axes.set(title=title, xlabel="Weights left (%)")
            percent_axis(axes, next(iter(arms.values()))[0])
        right.axhline(threshold, color="#111111", linewidth=1.0, linestyle="--")
        figure.key(left)
    return figure.png


def paths(arms: Mapping[str, np.ndarray]) -> bytes:
    """PNG of the error on the way from one child to another, (points,) an arm, as fractions."""
    drawn = looks(["dense", *arms])
    with canvas(5.6, 3.0) as figure:
        axes = figure.subplots()
        for arm, values in arms.items():
            alphas = np.linspace(0, 1, len(values))
            axes.plot(alphas, 100 * values, drawn[arm].line, color=drawn[arm].color, label=arm)
        axes.set(title="Test error (%)", xlabel="From one child (0) to the other (1)", xlim=(0, 1))
        figure.key(axes)
    return figure.png


def diagonals(arms: Mapping[str, tuple[Sequence[int], Sequence[int]]]) -> bytes:
    """PNG of small axes, one an arm: counts in `BINS` of kept and of pruned weights, as shares."""
    rows, columns = -(-len(arms) // PER_ROW), min(len(arms), PER_ROW)
    middle = np.sqrt(BINS[1:] * BINS[:-1])
    with canvas(1.4 + 1.9 * columns, 0.5 + 1.9 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for unused in grid[len(arms) :]:
            unused.remove()
        for axes, (arm, both) in zip(grid, arms.items(), strict=False):
            axes.tick_params(labelbottom=True)
            for name, color, counts in zip(("kept", "pruned"), COLORS[1:], both, strict=False):
                share = 100 * np.asarray(counts) / max(np.sum(counts), 1)
                axes.plot(middle, share, drawstyle="steps-mid", color=color, label=name)
            axes.set_title(arm)
            axes.set_xscale("log")
        figure.supxlabel("Size of the Hessian's diagonal entry", fontsize=9)
        figure.supylabel("Share of the weights (%)", fontsize=9)
        figure.key(grid[0])
    return figure.png
