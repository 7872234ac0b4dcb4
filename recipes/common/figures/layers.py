"""The figure of how many neurons of each layer are left, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from recipes.common.figures.style import Look, canvas, looks

BEFORE = "#dddddd"

Widths = Mapping[str, Any]  # group of neurons -> how many are left (seeds,)


def picture(
    before: Mapping[str, int],
    panels: Mapping[str, Mapping[str, Widths]],
    drawn: Mapping[str, Look] | None = None,
) -> bytes:
    """PNG of the neurons by group before (bars) and after: a dot an arm, its range over seeds.

    Args:
      before: group -> neurons.
      panels: title -> arm -> its widths.
      drawn: the look of each arm.
    """
    arms = list(dict.fromkeys(arm for panel in panels.values() for arm in panel))
    drawn = drawn or looks(["before", *arms])
    height = max(0.3, 0.11 * len(arms))
    with canvas(7.0, 0.9 + height * len(before)) as figure:
        several = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, panel) in zip(several, panels.items(), strict=True):
            axes.barh(
                np.arange(len(before)), list(before.values()), 0.8, color=BEFORE, label="before"
            )
            for offset, arm in zip(np.linspace(-0.28, 0.28, len(arms)), arms, strict=True):
                if arm in panel:
                    _dots(axes, before, panel[arm], offset if len(arms) > 1 else 0, arm, drawn[arm])
            axes.set(title=title, xlabel="Neurons")
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        first = several[0]
        first.set_yticks(np.arange(len(before)), [_short(name) for name in before])
        first.set_ylim(len(before) - 0.5, -0.5)
        figure.key(first)
    return figure.png


def _dots(
    axes: Axes, before: Mapping[str, int], widths: Widths, offset: float, arm: str, look: Look
) -> None:
    left = [np.asarray(widths[name]) for name in before]
    means = np.array([own.mean() for own in left])
    spread = [means - [own.min() for own in left], [own.max() for own in left] - means]
    axes.errorbar(
        means,
        np.arange(len(left)) + offset,
        xerr=np.abs(spread),
        fmt=look.marker,
        markersize=3.5,
        elinewidth=1.2,
        color=look.color,
        label=arm,
    )


def _short(group: str) -> str:
    return group.removeprefix("params/")
