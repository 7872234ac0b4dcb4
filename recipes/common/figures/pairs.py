"""Figures about pairs of networks and soups, as PNG.

Matrices as heat maps, losses along paths, accuracy and gain of soups, and barriers of children.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np

import jaxprune as jp
from jaxprune.plots.pictures import Matrix as Matrix
from jaxprune.plots.pictures import Paths as Paths
from recipes.common.figures.style import COLORS, STROKES, Look, canvas, looks, png


def heat_maps(matrices: Mapping[str, Matrix]) -> bytes:
    """PNG of `jp.plots.pairs`."""
    return png(jp.plots.pairs(matrices))


def along_paths(
    panels: Mapping[str, Paths], threshold: float | None = None, kind: str = "seed"
) -> bytes:
    """PNG of `jp.plots.paths`."""
    return png(jp.plots.paths(panels, threshold, kind))


class Forks(NamedTuple):
    """One arm: instability of every pair, and accuracy of every child, at each fork."""

    instability: Sequence[np.ndarray]  # fraction of errors, one (pairs,) a fork
    accuracy: Sequence[np.ndarray]  # fraction, one (children,) a fork


def over_forks(steps: Sequence[int], arms: Mapping[str, Forks], threshold: float) -> bytes:
    """PNG of instability and of accuracy against the step of the fork; forks are evenly spaced."""
    with canvas(7.0, 2.8) as figure:
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
    return figure.png


INKS = (*COLORS[1:], COLORS[0])  # of arms

Values = Mapping[str, np.ndarray]  # arm -> (phases, seeds)


def soups(
    sparsities: Sequence[float],
    accuracy: Values,
    gain: Values,
    of: str,
    dense: np.ndarray,
    band: str,
) -> bytes:
    """PNG of test accuracy against weights left, and of the gain over the arm `of`, in points.

    The band of one arm, from its worst seed to its best; gains with their standard error over
    seeds. `dense` (seeds,) is the accuracy before the first prune.
    """
    drawn = {
        arm: Look(color, *stroke)
        for arm, color, stroke in zip(accuracy, cycle(INKS), cycle(STROKES), strict=False)
    }
    left = [100 * (1 - s) for s in sparsities]
    with canvas(8.4, 3.2) as figure:
        absolute, relative = figure.subplots(1, 2)
        level = 100 * dense.mean()
        absolute.axhline(level, color="#111111", linewidth=1.0, linestyle="--", label="dense")
        for arm, values in accuracy.items():
            look, points = drawn[arm], 100 * values
            style = look.line + look.marker
            absolute.plot(left, points.mean(1), style, color=look.color, label=arm, markersize=4)
            if band == arm:  # those of all would hide each other
                lowest, highest = points.min(1), points.max(1)
                absolute.fill_between(left, lowest, highest, color=look.color, alpha=0.15, lw=0)
        relative.axhline(0, color=drawn[of].color, linewidth=1.2)
        width = 0.6 / max(len(gain), 1)
        for i, (arm, values) in enumerate(gain.items()):
            points = 100 * values
            at = np.arange(len(left)) + width * (i - (len(gain) - 1) / 2)
            error = None
            if points.shape[1] > 1:
                error = points.std(1, ddof=1) / np.sqrt(points.shape[1])
            look = drawn[arm]
            dots = np.repeat(at[:, None], points.shape[1], 1)
            relative.plot(dots, points, ".", color=look.color, alpha=0.3, markersize=3)
            relative.errorbar(
                at,
                points.mean(1),
                yerr=error,
                fmt=look.marker,
                color=look.color,
                markersize=4,
                elinewidth=1.2,
            )
        absolute.set_xscale("log")
        absolute.invert_xaxis()
        absolute.set_xticks(left, [f"{x:.3g}" for x in left])
        absolute.minorticks_off()
        absolute.set(title="Test accuracy (%)", xlabel="Weights left (%)")
        relative.set(title=f"Above the {of} (points)", xlabel="Weights left (%)")
        relative.set_xticks(np.arange(len(left)), [f"{x:.3g}" for x in left])
        relative.grid(axis="x", visible=False)
        figure.key(absolute)
    return figure.png


def barriers(sparsities: Sequence[float], pairs: Sequence[np.ndarray], threshold: float) -> bytes:
    """PNG of the error barrier of every two children (points), phase by phase, and their mean."""
    with canvas(4.2, 2.8) as figure:
        axes = figure.subplots()
        at = np.arange(len(pairs))
        means = [100 * values.mean() for values in pairs]
        for x, values in zip(at, pairs, strict=True):
            dots = np.full(values.size, float(x))
            axes.plot(dots, 100 * values.ravel(), ".", color=COLORS[1], alpha=0.3, markersize=5)
        axes.plot(at, means, "o-", color=COLORS[1], markersize=4, label="mean of the pairs")
        label = f"connected below {threshold:g} points"
        axes.axhline(threshold, color="#111111", linewidth=1.0, linestyle="--", label=label)
        axes.set(title="Error barrier between two children (points)", xlabel="Weights left (%)")
        axes.set_xticks(at, [f"{100 * (1 - s):.3g}" for s in sparsities])
        axes.set_ylim(bottom=min(-0.03 * threshold, axes.get_ylim()[0]))
        axes.legend(loc="best")
    return figure.png
