"""Time of a forward pass before and after a network was made smaller, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.common.figures.style import COLORS, STYLE, png

DENSE = "dense"
QUARTILES = ("low", "median", "high")


def latency(networks: Mapping[str, Mapping[str, Any]]) -> bytes:
    """PNG of bars, a panel a network: its time as dense, masked, and compacted.

    Args:
      networks: title -> cells of summary.json of `recipes.bench`: name -> seconds, and their ratio
        to the dense network, each a median between quartiles.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.1), layout="constrained")
        panels = figure.subplots(1, len(networks), squeeze=False, sharey=True)[0]
        for axes, (title, cells) in zip(panels, networks.items(), strict=True):
            _panel(axes, title, cells)
        return png(figure)


def _panel(axes: Axes, title: str, cells: Mapping[str, Any]) -> None:
    rows = {_name(cell): own for cell, own in cells.items() if "A/A" not in cell}
    order = sorted(rows, key=lambda name: (name != DENSE, not name.startswith("masked")))
    for row, name in enumerate(order):
        seconds, ratio = rows[name]["seconds"]["median"], rows[name]["ratio"].get(DENSE)
        low, share, high = (1.0,) * 3 if ratio is None else (ratio[q] for q in QUARTILES)
        color = COLORS[2] if name.startswith("compacted") else COLORS[0]
        axes.barh(row, share, height=0.62, color=color)
        if ratio is not None:
            axes.plot([low, high], [row, row], color="#222222", linewidth=1)
        told = f"{share:.2f}   {1e3 * seconds:#.3g} ms"
        axes.text(1.98, row, told, va="center", ha="right", fontsize=8)
    axes.axvline(1, color="#222222", linewidth=0.8)
    axes.set_yticks(np.arange(len(order)), order)
    axes.set(
        title=title,
        xlabel="time of a forward pass / dense",
        xlim=(0, 2),
        ylim=(len(order) - 0.5, -0.5),
    )
    axes.set_xticks([0, 0.5, 1])
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _name(cell: str) -> str:
    """As people say it: "compacted to 0.5" -> "compacted, ½ of the FLOPs"."""
    parts = {"0.5": "½", "0.25": "¼"}
    if cell.startswith("compacted to "):
        part = cell.removeprefix("compacted to ")
        return f"compacted, {parts.get(part, part)} of the FLOPs"
    return "masked only" if cell.startswith("masked") else cell
