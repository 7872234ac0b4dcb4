"""A figure of accuracy against the weights that are left, on a log axis, as PNG."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from recipes.common.plots import MANY, STYLE, Curve, band, looks, png

TICKS = (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


def picture(arms: Mapping[str, Curve], dense: np.ndarray, near: float = 0.03) -> bytes:
    """PNG of the accuracy of each arm, whole and near that of the dense networks.

    Args:
      arms: fractions of the weights that are left (phases,), accuracies (phases, replicates).
      dense: accuracies of the dense networks (replicates,).
      near: how far below them the second panel reaches.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.9), layout="constrained")
        whole, close = figure.subplots(1, 2)
        for axes in (whole, close):
            _draw(axes, arms, dense)
        whole.set(title="Test accuracy (%)")
        close.set(title="The same, near dense")
        top = 100 * max(dense.max(), *(np.max(values) for _, values in arms.values()))
        close.set_ylim(100 * (dense.mean() - near), top + 20 * near)
        if len(arms) > MANY:
            figure.legend(*whole.get_legend_handles_labels(), loc="outside right upper")
        else:
            whole.legend(loc="best")
        return png(figure)


def _draw(axes: Axes, arms: Mapping[str, Curve], dense: np.ndarray) -> None:
    drawn = looks(["dense", *arms])
    axes.axhspan(100 * dense.min(), 100 * dense.max(), color="#555555", alpha=0.15, linewidth=0)
    axes.axhline(100 * dense.mean(), color="#555555", linewidth=1.2, linestyle="--", label="dense")
    for arm, (left, values) in arms.items():
        band(axes, ([100 * part for part in left], values), arm, drawn[arm], points=True)
    axes.set_xscale("log")
    lowest = 100 * min(min(left) for left, _ in arms.values())
    highest = 100 * max(max(left) for left, _ in arms.values())
    axes.set_xlim(1.15 * highest, lowest / 1.15)  # from many to few
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("Weights left (%)")
