"""Accuracy at several patterns, such as 2:4 and 1:8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recipes.common.figures.left import dense_line
from recipes.common.figures.style import Look, canvas


def accuracy(
    methods: Mapping[str, np.ndarray],
    patterns: Sequence[str],
    dense: np.ndarray,
    drawn: Mapping[str, Look],
) -> bytes:
    """PNG: for each method a marker at each pattern, side by side.

    Args:
      methods: accuracies (patterns, seeds), fractions.
      dense: accuracies of the dense networks (seeds,).
      drawn: the look of "dense" and of each method.
    """
    with canvas(7.0, 3.2) as figure:
        axes = figure.subplots()
        dense_line(axes, dense, drawn["dense"])
        places = np.arange(len(patterns))
        for i, (method, values) in enumerate(methods.items()):
            look, mean = drawn[method], 100 * values.mean(1)
            beside = places + 0.6 * ((i + 0.5) / len(methods) - 0.5)
            reach = np.abs(100 * np.stack([values.min(1), values.max(1)]) - mean)
            axes.errorbar(
                *(beside, mean, reach),
                color=look.color,
                linestyle="none",
                marker=look.marker or "o",
                markersize=5,
                elinewidth=1.2,
                label=method,
            )
        axes.set_xticks(places, patterns)
        axes.set(title="Test accuracy (%)", xlabel="Weights kept of every group of inputs")
        figure.key(axes)
    return figure.png
