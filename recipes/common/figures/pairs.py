"""Figures about pairs of networks, as PNG: matrices as heat maps, and losses along paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

import jaxprune as jp
from jaxprune.plots import Matrix as Matrix
from jaxprune.plots import Paths as Paths
from recipes.common.figures.style import STYLE, looks, png


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
