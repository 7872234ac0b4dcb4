"""Accuracy against the weights (or FLOPs) that are left: the axis, and a figure as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from recipes.common.figures.style import MANY, STYLE, Curve, Look, band, looks, png

TICKS = (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
MORE_TICKS = (100, 70, 50, 35, 25, 20, 15, 10, 7, 5, 3, 2, 1)  # for a short axis


def picture(
    arms: Mapping[str, Curve], dense: np.ndarray, near: float = 0.03, what: str = "Weights"
) -> bytes:
    """PNG of the accuracy of each arm, whole and near that of the dense networks.

    Args:
      arms: fractions of the weights that are left (phases,), accuracies (phases, replicates).
      dense: accuracies of the dense networks (replicates,).
      near: how far below them the second panel reaches.
      what: is left.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.9), layout="constrained")
        whole, close = figure.subplots(1, 2)
        for axes in (whole, close):
            draw(axes, arms, dense)
            axes.set_xlabel(f"{what} left (%)")
        whole.set(title="Test accuracy (%)")
        close.set(title="The same, near dense")
        top = 100 * max(dense.max(), *(np.max(values) for _, values in arms.values()))
        close.set_ylim(100 * (dense.mean() - near), top + 20 * near)
        if len(arms) > MANY:
            figure.legend(*whole.get_legend_handles_labels(), loc="outside right upper")
        else:
            whole.legend(loc="best")
        return png(figure)


def draw(
    axes: Axes,
    arms: Mapping[str, Curve],
    dense: np.ndarray,
    drawn: Mapping[str, Look] | None = None,
) -> None:
    """The accuracies of all arms and of the dense networks, on a `percent_axis`."""
    drawn = drawn or looks(["dense", *arms])
    dense_line(axes, dense, drawn["dense"])
    for arm, (left, values) in arms.items():
        band(axes, ([100 * part for part in left], values), arm, drawn[arm], points=True)
    percent_axis(axes, [part for left, _ in arms.values() for part in left])


def dense_line(axes: Axes, values: np.ndarray, look: Look) -> None:
    """The accuracy of dense networks (seeds,) over all of the axis, with its band."""
    worst, best = 100 * values.min(), 100 * values.max()
    axes.axhspan(worst, best, color=look.color, alpha=0.15, linewidth=0)
    mean = 100 * values.mean()
    axes.axhline(mean, color=look.color, linewidth=1.2, linestyle="--", label="dense")


def percent_axis(axes: Axes, left: Sequence[float]) -> None:
    """Percent of the weights on a logarithmic axis, from many to few."""
    lowest, highest = 100 * min(left) / 1.15, 1.15 * 100 * max(left)
    within = lambda ticks: [tick for tick in ticks if lowest <= tick <= highest]
    ticks = within(TICKS) if len(within(TICKS)) > 2 else within(MORE_TICKS)
    axes.set_xscale("log")
    axes.set_xlim(highest, lowest)
    axes.xaxis.set_major_locator(FixedLocator(ticks or [100 * max(left)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
