"""Figures of curvature, as PNG: the largest eigenvalues as bars, and the density of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recipes.common.figures.style import COLORS, STYLE, png

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
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.9), layout="constrained")
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
        return png(figure)
