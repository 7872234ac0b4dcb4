"""Figures of language models, as PNG: bits a character over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from recipes.common.figures.style import Curve, Look, canvas, looks, steps_locator


def learning(curves: Mapping[str, Curve]) -> bytes:
    """PNG of bits a character over steps: a line for each part, a band over seeds.

    The first steps of a part that is measured more often are above the picture.
    """
    drawn = looks(curves)
    with canvas(6.0, 3.0) as figure:
        axes = figure.subplots()
        for name, (steps, values) in curves.items():
            line(axes, steps, values, name, drawn[name])
        last = max(max(steps) for steps, _ in curves.values())
        axes.set(title="Bits a character", xlabel="Step", xlim=(0, last))
        high = min(float(values.max()) for _, values in curves.values())
        axes.set_ylim(0, 1.1 * high)
        axes.xaxis.set_major_locator(steps_locator(6))
        figure.key(axes)
    return figure.png


def line(
    axes: Axes, x: Sequence[float], values: np.ndarray, label: str, look: Look, points: str = ""
) -> None:
    """Draws the mean over seeds of values (points, seeds), and the range."""
    style = look.line + points
    axes.plot(x, values.mean(1), style, color=look.color, label=label, markersize=4)
    axes.fill_between(x, values.min(1), values.max(1), color=look.color, alpha=0.18, linewidth=0)
