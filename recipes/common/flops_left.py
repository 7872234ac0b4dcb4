"""The figure of accuracy against the FLOPs that are left, as PNG: when pruned, and trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from recipes.common.figures.left import draw
from recipes.common.figures.style import STYLE, Curve, Look, png


def picture(
    at_once: Mapping[str, Curve],
    trained_on: Mapping[str, Curve],
    dense: np.ndarray,
    asked: Sequence[float],
    drawn: Mapping[str, Look] | None = None,
) -> bytes:
    """PNG of the accuracy of each arm right after each pruning, and after training on.

    Args:
      at_once, trained_on: fractions of the FLOPs that are left (rounds,), accuracies (rounds,
        seeds).
      dense: accuracies of the dense networks (seeds,).
      asked: the fractions that were aimed at, which are marked on the axis.
      drawn: the look of "dense" and of each arm.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(8.0, 2.9), layout="constrained")
        panels = {"Test accuracy (%), just pruned": at_once, "Trained on": trained_on}
        several = figure.subplots(1, 2)
        for axes, (title, arms) in zip(several, panels.items(), strict=True):
            draw(axes, arms, dense, drawn)
            axes.set(title=title, xlabel="FLOPs left (%)")
            axes.xaxis.set_major_locator(FixedLocator([100 * share for share in asked]))
        figure.legend(*several[0].get_legend_handles_labels(), loc="outside right upper")
        return png(figure)
