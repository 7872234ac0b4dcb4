"""Accuracy over the strength of a shift, as PNG: a panel for each kind."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recipes.common.figures.style import band, canvas, looks

COLUMNS = 4


def over_strengths(panels: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """PNG of accuracies by arm, with bands over seeds.

    Args:
      panels: kind of shift -> arm -> fractions (strengths, seeds); strength 0 is none.
    """
    rows = -(-len(panels) // COLUMNS)
    with canvas(9.0, 2.0 * rows + 0.3) as figure:
        every = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, (kind, arms) in zip(every, panels.items(), strict=False):
            drawn = looks(arms)
            for arm, values in arms.items():
                band(axes, (range(len(values)), values), arm, drawn[arm], points=True)
            axes.set(title=kind.capitalize())
            axes.set_xticks(range(len(values)))
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("Strength", fontsize=9)
        figure.supylabel("Test accuracy (%)", fontsize=9)
        figure.key(every[0])
    return figure.png
