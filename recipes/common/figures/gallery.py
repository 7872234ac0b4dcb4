"""Small pictures of what methods do, and bars of the time of a forward pass, as PNG.

Masks over time, scales, soups, learning rates.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from recipes.common.figures.style import COLORS, STYLE, canvas

MOMENTS = 4
LAYERS = ("first layer", "second", "last")
SOURCE = "Source"  # a keyword of the PNG standard

# shares: (times, layers), (times, 64 pixels), (times, 100 neurons), (times,)
Seen = tuple[np.ndarray, ...]


@jax.tree_util.register_pytree_node_class
class Drawing(NamedTuple):
    """What to draw: one of `KINDS`, and its arrays. A pytree of the arrays alone."""

    kind: str
    arrays: Any

    def tree_flatten(self) -> Any:
        return (self.arrays,), self.kind

    @classmethod
    def tree_unflatten(cls, kind: str, arrays: Any) -> Drawing:
        return cls(kind, *arrays)


def draw(drawing: Drawing, source: str) -> bytes:
    """PNG, in few colors, that holds the lines it was made by."""
    with rc_context({**STYLE, "font.size": 8, "axes.titlesize": 8}):
        figure = Figure(figsize=(6.6, 1.5), layout="constrained", dpi=150)
        KINDS[drawing.kind](figure, *jax.tree.map(np.asarray, drawing.arrays))
        pixels = io.BytesIO()
        figure.savefig(pixels, format="png", dpi=150)
    said, file = PngInfo(), io.BytesIO()
    said.add_itxt(SOURCE, source)
    image = Image.open(pixels).convert("RGB").quantize(160)
    image.save(file, format="png", optimize=True, pnginfo=said)
    return file.getvalue()


def source(path: Path) -> str:
    """The lines that a picture was made by; "" if it holds none."""
    with Image.open(path) as image:
        return str(image.info.get(SOURCE, ""))


def _over_time(figure: Figure, seen: Seen, unit: str, title: str = "kept, %") -> None:
    layers, pixels, neurons, still = seen
    squared = neurons if np.ptp(pixels, 1).max() < 1e-6 else pixels  # whole neurons go
    side = round(squared.shape[1] ** 0.5)
    *squares, axes = figure.subplots(
        1, MOMENTS + 1, width_ratios=[*[1] * MOMENTS, 2.6], gridspec_kw={"wspace": 0.04}
    )
    last = len(layers) - 1
    moments = np.linspace(0, last, MOMENTS).round().astype(int)
    for square, time in zip(squares, moments, strict=True):
        kept = squared[time].reshape(
            side, side
        )  # in shades of its own: else the last are all white
        square.imshow(kept, cmap=colormaps["Greys"], vmin=0, vmax=max(kept.max(), 1e-9))
        name = f"{unit} {_counted(time, len(layers))}"
        square.set_title(name, fontweight="normal", loc="center")
        square.set(xticks=[], yticks=[])
        square.grid(False)
        square.spines[:].set_visible(True)
    style = "-" if last > 50 else "o-"
    for values, color, name in zip(100 * layers.T, COLORS[1:], LAYERS, strict=False):
        axes.plot(values, style, markersize=3, color=color, label=name)
    if still.min() < 0.999:
        axes.plot(100 * still, ":", color=COLORS[0], label="of these,\nat first")
    axes.set_ylim(-3, 103)
    axes.set_title(title, fontweight="normal")
    axes.set_xlabel(unit)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)


def _counted(time: int, times: int) -> int:
    """The last of many steps is said as their number."""
    return time + 1 if times > 50 and time == times - 1 else time


def _over_phases(figure: Figure, *seen: np.ndarray) -> None:
    dense_first = tuple(np.concatenate([np.ones_like(x[:1]), x]) for x in seen)
    _over_time(figure, dense_first, "phase")


def _over_steps(figure: Figure, *seen: np.ndarray) -> None:
    _over_time(figure, seen, "step")


def _gates(figure: Figure, *seen: np.ndarray) -> None:
    _over_time(figure, seen, "step", "open, %")


def _scales(figure: Figure, scales: np.ndarray) -> None:
    axes = figure.subplots()
    times = np.linspace(0, len(scales) - 1, MOMENTS).round().astype(int)
    for time, shade in zip(times, np.linspace(0.35, 1, MOMENTS), strict=True):
        label = f"step {_counted(time, len(scales))}"
        axes.plot(-np.sort(-scales[time]), color=colormaps["Blues"](shade), label=label)
    axes.set_title("|scale| of the hidden neurons, sorted", fontweight="normal")
    axes.set_ylim(bottom=-0.03)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)


def _soup(figure: Figure, between: np.ndarray, average: np.ndarray) -> None:
    axes = figure.subplots()
    at = np.linspace(0, 1, between.shape[1])
    for row, values in enumerate(100 * between):
        label = "between two children" if row == 0 else None
        axes.plot(at, values, color=COLORS[2], linewidth=1, label=label)
    axes.axhline(100 * float(average), color=COLORS[1], linestyle="--", label="the soup of all")
    axes.set_title("test error, %", fontweight="normal")
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["a child", "½", "another"])
    axes.margins(y=0.2)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)


def _rates(figure: Figure, first: np.ndarray, rates: dict[str, np.ndarray]) -> None:
    axes = figure.subplots()
    axes.plot(first, color=COLORS[0], label="training")
    for color, (name, values) in zip(COLORS[1:], rates.items(), strict=False):
        axes.plot(len(first) + np.arange(len(values)), values, color=color, label=name)
    axes.axvline(len(first), color="#808080", linewidth=0.8, linestyle=":")
    axes.set_xlim(len(first) / 2, None)
    axes.set_title("learning rate; the prune is at the dots", fontweight="normal")
    axes.set_xlabel("step")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7)


KINDS: dict[str, Any] = {
    "step": _over_steps,
    "gates": _gates,
    "phase": _over_phases,
    "scales": _scales,
    "soup": _soup,
    "rates": _rates,
}


DENSE = "dense"
QUARTILES = ("low", "median", "high")


def latency(networks: Mapping[str, Mapping[str, Any]]) -> bytes:
    """PNG of bars, a panel a network: its time as dense, masked, and compacted.

    Args:
      networks: title -> cells of summary.json of `recipes.bench`: name -> seconds, and their ratio
        to the dense network, each a median between quartiles.
    """
    with canvas(7.0, 2.1) as figure:
        panels = figure.subplots(1, len(networks), squeeze=False, sharey=True)[0]
        for axes, (title, cells) in zip(panels, networks.items(), strict=True):
            _panel(axes, title, cells)
    return figure.png


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
