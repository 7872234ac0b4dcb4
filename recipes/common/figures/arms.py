"""Arms by several measures: a panel for each, a row for each arm, a dot for each seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recipes.common.figures.style import COLORS, canvas


def measures(panels: Mapping[str, Mapping[str, np.ndarray]], compared: str) -> bytes:
    """PNG of values by arm; a bar is the mean, and a dashed line that of the arm `compared`.

    Args:
      panels: title -> arm -> values (seeds,); all panels have the same arms.
    """
    arms = list(next(iter(panels.values())))
    with canvas(2.9 * len(panels) + 1.3, 0.9 + 0.27 * len(arms)) as figure:
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, values) in zip(every, panels.items(), strict=True):
            for row, arm in enumerate(arms):
                mine = np.asarray(values[arm])
                color = COLORS[0] if arm == compared else COLORS[1]
                at = np.full(len(mine), float(row))
                axes.plot(mine, at, "o", color=color, alpha=0.55, markersize=5, markeredgewidth=0)
                axes.plot([mine.mean()] * 2, [row - 0.3, row + 0.3], color=color, linewidth=2)
            mean = float(np.mean(values[compared]))
            axes.axvline(mean, color="#777777", linewidth=0.9, linestyle="--")
            axes.set(title=title)
            axes.grid(axis="y", visible=False)
        every[0].set_yticks(np.arange(len(arms)), arms)
        every[0].invert_yaxis()
        for axes in every:
            axes.tick_params(axis="y", length=0)
    return figure.png
