"""Figures of a run, as PNG: training curves with a band over seeds, density by layer, churn."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

import jaxprune as jp
from jaxprune.plots.canvas import COLORS as COLORS
from jaxprune.plots.canvas import STROKES as STROKES
from jaxprune.plots.canvas import STYLE as STYLE
from jaxprune.plots.canvas import Curve as Curve
from jaxprune.plots.canvas import Look as Look
from jaxprune.plots.canvas import band as band
from jaxprune.plots.canvas import looks as looks
from jaxprune.plots.canvas import steps_locator as steps_locator

MANY = 3  # more arms than this have their legend beside the axes


def training_curves(
    accuracy: Mapping[str, Curve],
    sparsity: Mapping[str, Curve],
    pruned_between: tuple[int, int] | None = None,
) -> bytes:
    """PNG of `jp.plots.training`."""
    return png(jp.plots.training(accuracy, sparsity, pruned_between))


def layer_density(
    arms: Mapping[str, Mapping[str, np.ndarray]], drawn: Mapping[str, Look] | None = None
) -> bytes:
    """PNG of the percentage of each layer's weights that each arm keeps; path -> (seeds,).

    Bars for one arm, dots for several; the line on each is one standard deviation over seeds to
    either side. Dots are on a logarithmic axis, where a layer that keeps nothing, in one seed at
    least, is a cross at the left edge.
    """
    density = {arm: {path: 100 * np.asarray(v) for path, v in arms[arm].items()} for arm in arms}
    row = 0.28 if len(arms) == 1 else max(0.28, 0.1 * len(arms))  # inches
    paths = list(next(iter(density.values())))
    with canvas(7.0, 0.8 + row * len(paths)) as figure:
        axes = figure.subplots()
        axes.set_yticks(np.arange(len(paths)), [path.removesuffix("/kernel") for path in paths])
        axes.set(title="Weights kept (%), by layer")
        axes.margins(y=0.02)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        if len(arms) == 1:
            _bars(axes, *density.values())
        else:
            _dots(axes, density, drawn or looks(arms))
            figure.key(axes)
    return figure.png


def churn(
    first: Mapping[str, Curve],
    previous: Mapping[str, Curve],
    explored: Mapping[str, Curve],
    drawn: Mapping[str, Look] | None = None,
) -> bytes:
    """PNG of three panels over steps, a line with a band over seeds for each arm.

    Args:
      first, previous: the overlap with the first masks, and with those of the line before.
      explored: R_s, the fraction of weights that were ever in the masks; not drawn where all were
        from the start.
    """
    panels = (
        (first, "Overlap with first masks (%)"),
        ({arm: _moved(c) for arm, c in previous.items()}, "Overlap with previous masks (%)"),
        ({arm: c for arm, c in explored.items() if c[1][0].min() < 1}, "Ever active, $R_s$ (%)"),
    )
    drawn = drawn or looks(first)
    with canvas(9.0, 2.7) as figure:
        three = figure.subplots(1, 3)
        for axes, (curves, title) in zip(three, panels, strict=True):
            for arm, curve in curves.items():
                band(axes, curve, arm, drawn[arm])
            axes.set(title=title, xlabel="Step")
            axes.set_xlim(0, max(max(steps) for steps, _ in first.values()))
            axes.set_ylim(-2, 102)
            axes.xaxis.set_major_locator(steps_locator(4))
        if panels[-1][0]:
            three[-1].autoscale(axis="y")
            three[-1].set_ylim(bottom=0)
        figure.key(three[0])
    return figure.png


def _moved(curve: Curve) -> Curve:
    """Only the points where masks had changed, if any had: between updates the overlap is 1."""
    steps, values = np.asarray(curve[0]), np.asarray(curve[1])
    moved = (values < 1).any(1)
    return (steps[moved].tolist(), values[moved]) if moved.any() else curve


def _bars(axes: Axes, density: Mapping[str, np.ndarray]) -> None:
    means, spread = [v.mean() for v in density.values()], [_std(v) for v in density.values()]
    rows = np.arange(len(density))
    axes.barh(rows, means, xerr=spread, height=0.62, color=COLORS[1], ecolor="#333333")
    for row, mean, deviation in zip(rows, means, spread, strict=True):
        text = f" {mean:.3g}"
        axes.text(mean + deviation, float(row), text, va="center", fontsize=8, color="#333333")
    axes.set_xlim(0, min(112, 1.12 * (max(means) + max(spread)) + 0.01))


def _dots(
    axes: Axes, arms: Mapping[str, Mapping[str, np.ndarray]], drawn: Mapping[str, Look]
) -> None:
    rows = len(next(iter(arms.values())))
    every = np.concatenate([values for density in arms.values() for values in density.values()])
    edge = np.min(every, initial=100.0, where=every > 0) / 2
    some_empty = False
    for offset, (arm, density) in zip(np.linspace(-0.3, 0.3, len(arms)), arms.items(), strict=True):
        means, spread = [v.mean() for v in density.values()], [_std(v) for v in density.values()]
        axes.errorbar(
            means,
            np.arange(rows) + offset,
            xerr=spread,
            fmt=drawn[arm].marker,
            markersize=4,
            elinewidth=1.2,
            color=drawn[arm].color,
            label=arm,
        )
        empty = np.flatnonzero([(values == 0).any() for values in density.values()])
        some_empty |= empty.size > 0
        at = np.full(len(empty), edge)
        axes.plot(at, empty + offset, "x", color=drawn[arm].color, markersize=7, markeredgewidth=2)
    if some_empty:
        axes.plot([], [], "x", color="#333333", markersize=7, markeredgewidth=2, label="keeps none")
    for row in range(1, rows):
        axes.axhline(row - 0.5, color="#e6e6e6", linewidth=0.6)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xscale("log", nonpositive="mask")  # there is no place for 0: crosses stand for it
    axes.set_xlim(edge / 1.3, 130)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if values.size > 1 else 0.0


class Canvas(Figure):
    """A figure, and the content of its file once it is drawn."""

    png = b""

    def key(self, axes: Axes) -> None:
        """What lines and markers mean, beside the panels."""
        self.legend(*axes.get_legend_handles_labels(), loc="outside right upper")


@contextmanager
def canvas(
    width: float, height: float, layout: Any = "constrained", grid: bool = True
) -> Iterator[Canvas]:
    """Opens a figure of so many inches to draw on; its `png` is there after the block."""
    with rc_context(STYLE | {"axes.grid": grid}):
        figure = Canvas(figsize=(width, height), layout=layout)
        yield figure
        figure.png = png(figure)


def png(figure: Figure) -> bytes:
    """The content of a file."""
    file = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(file, format="png")
    return file.getvalue()


def curve(records: Sequence[Mapping[str, Any]], arm: str, key: str) -> Curve:
    """The steps and values of `records[i][arm][key]`, where it was logged."""
    points = [(record["step"], record[arm][key]) for record in records if key in record[arm]]
    steps, values = zip(*points, strict=True)
    return steps, np.asarray(values)
