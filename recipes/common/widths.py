"""The figure of a study of widths."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from recipes.common.figures.style import STYLE, Curve, band, looks, png


def picture(accuracy: Mapping[str, Curve], gap: Mapping[str, Curve], equal: str) -> bytes:
    """PNG of test accuracy and of the gap to dense against width, each arm's with its band.

    Args:
      accuracy: of the dense arm and the others: (widths, fractions (widths, seeds)).
      gap: of the others, accuracy minus that of dense.
      equal: what all widths have in common.
    """
    drawn = looks(accuracy)
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.7), layout="constrained")
        for axes, curves, title in zip(
            figure.subplots(1, 2),
            (accuracy, gap),
            ("Test accuracy (%)", "Accuracy minus dense (points)"),
            strict=True,
        ):
            for arm, (widths, values) in curves.items():
                order = np.argsort(widths)
                band(
                    axes, ([widths[i] for i in order], values[order]), arm, drawn[arm], points=True
                )
            axes.set(title=title, xlabel=f"Width, at equal {equal}")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(sorted(widths)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda width, _: f"{width:g}")
            if curves is gap:
                axes.axhline(0, color=drawn["dense"].color, linewidth=1.6)
            else:
                handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside right upper")
        return png(figure)
