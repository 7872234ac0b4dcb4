"""Figures of a run, as PNG: training curves with a band over seeds, density by layer."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#808080",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "savefig.dpi": 200,
}
# From the palette of Okabe and Ito (2008): told apart by all eyes, and in print.
COLORS = ("#555555", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")

STROKES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # lines, markers
MANY = 3  # more arms than this have their legend beside the axes

Curve = tuple[Sequence[float], np.ndarray]  # steps (points,), values (points, seeds)


class Look(NamedTuple):
    """How an arm is drawn."""

    color: str
    line: str
    marker: str


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """The look of each arm, the same in all figures of a run.

    The first word of its name has a colour; what follows, such as a width, a dash and a marker. So
    have the words that come after the last colour.
    """
    arms = list(arms)
    kinds, variants = (list(dict.fromkeys(arm.partition(" ")[i] for arm in arms)) for i in (0, 2))

    def look(arm: str) -> Look:
        kind, variant = kinds.index(arm.partition(" ")[0]), variants.index(arm.partition(" ")[2])
        again, color = divmod(kind, len(COLORS))
        return Look(COLORS[color], *STROKES[(variant + again) % len(STROKES)])

    return {arm: look(arm) for arm in arms}


def training_curves(
    accuracy: Mapping[str, Curve],
    sparsity: Mapping[str, Curve],
    pruned_between: tuple[int, int] | None = None,
) -> bytes:
    """PNG of test accuracy and of sparsity over steps, each arm's mean and its range over seeds.

    Sparsity has its axes only if it changes. `pruned_between` shades the steps in which masks do.
    """
    panels = [(accuracy, "Test accuracy (%)")]
    if any(np.ptp(values, 0).any() for _, values in sparsity.values()):
        panels.append((sparsity, "Sparsity (%)"))
    with rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.7), layout="constrained")
        left, *right = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (curves, title) in zip((left, *right), panels, strict=True):
            for label, look in looks(accuracy).items():
                if label in curves:
                    band(axes, curves[label], label, look)
            if pruned_between:
                axes.axvspan(*pruned_between, color="#efefef", zorder=0, label="pruning")
            axes.set(title=title, xlabel="Step")
            axes.set_xlim(0, max(max(steps) for steps, _ in accuracy.values()))
            axes.xaxis.set_major_locator(steps_locator(5))
        left.set_ylim(*_accuracy_limits(accuracy))
        for axes in right:
            axes.set_ylim(-2, 102)
        if len(accuracy) > MANY:
            figure.legend(*left.get_legend_handles_labels(), loc="outside right upper")
        else:
            left.legend(loc="best")
        return png(figure)


def layer_density(
    arms: Mapping[str, Mapping[str, np.ndarray]], drawn: Mapping[str, Look] | None = None
) -> bytes:
    """PNG of the percentage of each layer's weights that each arm keeps; path -> (seeds,).

    Bars for one arm, dots for several; the line on each is one standard deviation over seeds to
    either side. Dots are on a logarithmic axis, where a layer that keeps nothing, in one seed at
    least, is a cross at the left edge.
    """
    density = {arm: {path: 100 * np.asarray(v) for path, v in arms[arm].items()} for arm in arms}
    with rc_context(STYLE):
        if len(arms) == 1:
            return png(_bars(density))
        return png(_dots(density, drawn or looks(arms)))


def _bars(arms: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    (density,) = arms.values()
    means, spread = [v.mean() for v in density.values()], [_std(v) for v in density.values()]
    figure, axes = _layers(list(density))
    rows = np.arange(len(density))
    axes.barh(rows, means, xerr=spread, height=0.62, color=COLORS[1], ecolor="#333333")
    for row, mean, deviation in zip(rows, means, spread, strict=True):
        text = f" {mean:.3g}"
        axes.text(mean + deviation, float(row), text, va="center", fontsize=8, color="#333333")
    axes.set_xlim(0, min(112, 1.12 * (max(means) + max(spread)) + 0.01))
    axes.grid(axis="y", visible=False)
    return figure


def _dots(arms: Mapping[str, Mapping[str, np.ndarray]], drawn: Mapping[str, Look]) -> Figure:
    paths = list(next(iter(arms.values())))
    figure, axes = _layers(paths, max(0.28, 0.1 * len(arms)))
    every = np.concatenate([values for density in arms.values() for values in density.values()])
    edge = np.min(every, initial=100.0, where=every > 0) / 2
    some_empty = False
    for offset, (arm, density) in zip(np.linspace(-0.3, 0.3, len(arms)), arms.items(), strict=True):
        means, spread = [v.mean() for v in density.values()], [_std(v) for v in density.values()]
        axes.errorbar(
            means,
            np.arange(len(paths)) + offset,
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
    for row in range(1, len(paths)):
        axes.axhline(row - 0.5, color="#e6e6e6", linewidth=0.6)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(paths) - 0.5, -0.5)
    axes.set_xscale("log", nonpositive="mask")  # there is no place for 0: crosses stand for it
    axes.set_xlim(edge / 1.3, 130)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    figure.legend(loc="outside right upper")
    return figure


def _layers(paths: Sequence[str], height: float = 0.28) -> tuple[Figure, Axes]:
    """Axes with a row of so many inches for each layer."""
    figure = Figure(figsize=(7.0, 0.8 + height * len(paths)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(np.arange(len(paths)), [path.removesuffix("/kernel") for path in paths])
    axes.set(title="Weights kept (%), by layer")
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if values.size > 1 else 0.0


def band(axes: Axes, curve: Curve, label: str, look: Look, points: bool = False) -> None:
    """Draws the mean over seeds in percent, and the range from the worst seed to the best."""
    steps, values = np.asarray(curve[0]), 100 * np.asarray(curve[1])
    style = look.line + (look.marker if points else "")
    axes.plot(steps, values.mean(1), style, color=look.color, label=label, markersize=4)
    low, high = values.min(1), values.max(1)
    axes.fill_between(steps, low, high, color=look.color, alpha=0.18, linewidth=0)


def _accuracy_limits(curves: Mapping[str, Curve]) -> tuple[float, float]:
    """Room for all but the first fifth, where accuracy climbs from chance and would dwarf it."""
    settled = [100 * np.asarray(values)[len(steps) // 5 :] for steps, values in curves.values()]
    low, high = min(v.min() for v in settled), max(v.max() for v in settled)
    margin = max(0.1 * (high - low), 0.5)
    return max(0.0, low - margin), min(100.5, high + margin)


def steps_locator(most: int) -> MaxNLocator:
    """Round numbers of steps, at most so many."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 4, 5, 10], integer=True)


def png(figure: Figure) -> bytes:
    """The content of a file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def curve(records: Sequence[Mapping[str, Any]], arm: str, key: str) -> Curve:
    """The steps and values of `records[i][arm][key]`, where it was logged."""
    points = [(record["step"], record[arm][key]) for record in records if key in record[arm]]
    steps, values = zip(*points, strict=True)
    return steps, np.asarray(values)
