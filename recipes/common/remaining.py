"""Figures over the weights that are left: accuracy, controls, and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxprune.rules import named_leaves
from recipes.common import results
from recipes.common.figures.left import dense_line, percent_axis
from recipes.common.figures.style import STROKES, STYLE, Curve, Look, band, png

PER_ROW = 4  # small axes side by side
FLOOR = 0.7  # where a layer is drawn that keeps none


class Line(NamedTuple):
    """What a method comes to at several sparsities."""

    left: Sequence[float]  # the fraction of weights, (points,)
    accuracy: np.ndarray  # (points, seeds)
    collapsed: np.ndarray  # bool (points, seeds): whether a layer is empty


def accuracy(lines: Mapping[str, Line], dense: np.ndarray, drawn: Mapping[str, Look]) -> bytes:
    """PNG of the test accuracy of all methods against weights left; `dense` is (seeds,)."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 3.2), layout="constrained")
        axes = figure.subplots()
        dense_line(axes, dense, drawn["dense"])
        for method, line in lines.items():
            _draw(axes, line, method, drawn[method])
        axes.set(title="Test accuracy (%)", xlabel="Weights left (%)")
        percent_axis(axes, [left for line in lines.values() for left in line.left])
        figure.legend(loc="outside right upper")
        return png(figure)


def controls(
    methods: Mapping[str, Mapping[str, Line]], dense: np.ndarray, drawn: Mapping[str, Look]
) -> bytes:
    """PNG of small axes, one for each method: its own line and those of its controls."""
    with rc_context(STYLE):
        figure, grid = _grid(len(methods))
        for axes, (method, lines) in zip(grid, methods.items(), strict=True):
            dense_line(axes, dense, drawn["dense"])
            for (label, line), stroke in zip(lines.items(), STROKES, strict=False):
                _draw(axes, line, label, Look(drawn[method].color, *stroke))
            axes.set_title(method)
            percent_axis(axes, [left for line in lines.values() for left in line.left])
        handles, labels = grid[0].get_legend_handles_labels()
        legend = figure.legend(handles, labels, loc="outside right upper")
        for handle in legend.legend_handles[1:]:
            handle.set_color("#333333")  # type: ignore[union-attr]
        figure.supxlabel("Weights left (%)", fontsize=9)
        figure.supylabel("Test accuracy (%)", fontsize=9)
        return png(figure)


def layers(layers: Mapping[str, Mapping[str, Curve]], drawn: Mapping[str, Look]) -> bytes:
    """PNG of small axes, one for each layer: how many weights each method keeps there.

    The numbers are (points, seeds); a layer that keeps none is a cross on the floor.
    """
    with rc_context(STYLE):
        figure, grid = _grid(len(layers), sharey=False)
        for axes, (path, methods) in zip(grid, layers.items(), strict=True):
            for i, (method, (left, kept)) in enumerate(methods.items()):
                order = np.argsort(left)
                at = 100 * np.asarray(left)[order]
                counts = np.asarray(kept)[order]
                seen, look = np.maximum(counts, FLOOR), drawn[method]
                style = look.line + look.marker
                means = np.maximum(counts.mean(1), FLOOR)
                axes.plot(at, means, style, color=look.color, label=method, markersize=4)
                low, high = seen.min(1), seen.max(1)
                axes.fill_between(at, low, high, color=look.color, alpha=0.18, linewidth=0)
                empty = np.asarray(counts == 0).any(1)
                beside = at * 1.08 ** (len(methods) / 2 - i)  # of several, all are seen
                _crosses(axes, beside, np.full(len(at), FLOOR), empty, look)
            axes.set_title(path.removesuffix("/kernel"))
            axes.set_yscale("log")
            most = max(np.max(kept) for _, kept in methods.values())
            axes.set_ylim(FLOOR / 1.5, 2 * most)
            percent_axis(axes, [own for curve in methods.values() for own in curve[0]])
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper")
        figure.supxlabel("Weights left in all (%)", fontsize=9)
        figure.supylabel("Weights kept", fontsize=9)
        return png(figure)


def kept_by_layer(masks: Any) -> dict[str, np.ndarray]:
    """{path: weights kept by each seed, int (seeds,)} of stacked masks, layer 2 before layer 10."""
    sizes = {path: mask[0].size for path, mask in named_leaves(masks) if mask is not None}
    density = results.layer_density(masks)
    return {path: np.rint(own * sizes[path]).astype(int) for path, own in density.items()}


def _draw(axes: Axes, line: Line, label: str, look: Look) -> None:
    order = np.argsort(line.left)
    at = 100 * np.asarray(line.left)[order]
    values = np.asarray(line.accuracy)[order]
    band(axes, (at.tolist(), values), label, look, points=True)
    collapsed = np.asarray(line.collapsed[order]).any(1)
    _crosses(axes, at, 100 * values.mean(1), collapsed, look)


def _crosses(axes: Axes, at: np.ndarray, height: np.ndarray, where: Any, look: Look) -> None:
    axes.plot(at[where], height[where], "x", color=look.color, markersize=9, markeredgewidth=2)


def _grid(n: int, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    rows, columns = -(-n // PER_ROW), min(n, PER_ROW)
    size = (1.4 + 1.9 * columns, 0.5 + 1.9 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
    for unused in grid[n:]:
        unused.remove()
    return figure, list(grid[:n])
