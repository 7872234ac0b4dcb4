"""The error of networks over their cost, and the front that no other network beats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recipes.common.figures.style import Look, canvas
from recipes.common.search import front


def errors(
    series: Mapping[str, Any],
    drawn: Mapping[str, Look],
    cost: str,
    title: str,
    first: tuple[float, float] | None = None,
) -> bytes:
    """PNG: the error (%) of networks over their cost, on a logarithmic axis.

    Networks far above all fronts are outside of the picture.

    Args:
      series: name -> points (n, 2): cost, error as a fraction. Each front is a line.
      drawn: the look of each series.
      cost: the name of the axis.
      title: above the axes.
      first: the point of a network to compare with, a cross.
    """
    with canvas(7.0, 3.6) as figure:
        axes = figure.subplots()
        highest = 100 * first[1] if first else 0.0  # of what is on a front
        for name, points in series.items():
            cost_of, error = np.asarray(points, float).T
            look, best = drawn[name], front(points)
            best &= ~_again(points)
            order = np.argsort(cost_of[best])
            highest = max(highest, 100 * error[best].max())
            axes.plot(
                *(cost_of, 100 * error, look.marker or "o"),
                color=look.color,
                alpha=0.35,
                markersize=4,
                markeredgewidth=0,
            )
            axes.plot(
                *(cost_of[best][order], 100 * error[best][order]),
                color=look.color,
                marker=look.marker or "o",
                markersize=5,
                linewidth=1.4,
                label=name,
            )
        if first:
            x, y = [first[0]], [100 * first[1]]
            axes.scatter(x, y, 60, color="#333333", marker="x", linewidths=2.5, label="first trial")
        axes.set_xscale("log")
        axes.set(title=title, xlabel=cost)
        axes.set_ylim(0, min(axes.get_ylim()[1], 1.3 * highest))
        figure.key(axes)
    return figure.png


def _again(points: Any) -> np.ndarray:
    """Which points (n, 2) are equal to an earlier one."""
    seen = np.asarray(points, float)
    return np.array([(seen[:i] == point).all(-1).any() for i, point in enumerate(seen)])
