"""Accuracy over the time that a training takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import FuncFormatter, PercentFormatter

from recipes.common.figures.style import Look, canvas


class Course(NamedTuple):
    """The accuracy of an arm as it trains.

    Attributes:
      seconds: (points,), in steps so far, without tests and compilation.
      accuracy: (points, seeds), fractions.
    """

    seconds: np.ndarray
    accuracy: np.ndarray


def accuracy(arms: Mapping[str, Course], drawn: Mapping[str, Look]) -> bytes:
    """PNG: a line for each arm, the mean over seeds, with a large marker where training ends."""
    with canvas(7.4, 3.8) as figure:
        axes = figure.subplots()
        for name, (seconds, values) in arms.items():
            look, mean = drawn[name], values.mean(1)
            axes.plot(
                *(seconds, mean),
                color=look.color,
                linestyle=look.line,
                marker=look.marker,
                markevery=4,
                markersize=3,
                label=name,
            )
            axes.plot(seconds[-1:], mean[-1:], color=look.color, marker=look.marker, markersize=7)
        axes.set(title="Test accuracy", xlabel="Seconds of training", xscale="log")
        lowest = min(float(course.accuracy[-1].mean()) for course in arms.values())
        axes.set_ylim(2 * lowest - 1 if lowest > 0.5 else 0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        figure.key(axes)
    return figure.png
