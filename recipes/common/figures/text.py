"""Figures of language models, as PNG: bits a character over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from recipes.common.figures.style import Curve, Look, canvas, looks, steps_locator


def learning(curves: Mapping[str, Curve]) -> bytes:
    """PNG of bits a character over steps: a line for each part, a band over seeds.

    The first steps of a part that is measured more often are above the picture.
    """
    drawn = looks(curves)
    with canvas(6.0, 3.0) as figure:
        axes = figure.subplots()
        for name, (steps, values) in curves.items():
            line(axes, steps, values, name, drawn[name])
        last = max(max(steps) for steps, _ in curves.values())
        axes.set(title="Bits a character", xlabel="Step", xlim=(0, last))
        high = min(float(values.max()) for _, values in curves.values())
        axes.set_ylim(0, 1.1 * high)
        axes.xaxis.set_major_locator(steps_locator(6))
        figure.key(axes)
    return figure.png


def line(
    axes: Axes, x: Sequence[float], values: np.ndarray, label: str, look: Look, points: str = ""
) -> None:
    """Draws the mean over seeds of values (points, seeds), and the range."""
    style = look.line + points
    axes.plot(x, values.mean(1), style, color=look.color, label=label, markersize=4)
    axes.fill_between(x, values.min(1), values.max(1), color=look.color, alpha=0.18, linewidth=0)


Panel = Mapping[str, Mapping[str, np.ndarray]]  # method -> sparsity in words -> (runs,)


def over_sparsity(grid: Mapping[str, Mapping[str, Panel]], dense: np.ndarray) -> bytes:
    """PNG of perplexity over sparsities: a line for each method, a band over runs.

    Args:
      grid: title of a row -> title of a column -> panel, as many in each row; lines join only
        fractions. All panels share their axes.
      dense: perplexities of the dense models (models,).
    """
    panels = [(row, column, grid[row][column]) for row in grid for column in grid[row]]
    methods = {method: None for _, _, panel in panels for method in panel}
    every = [by for _, _, panel in panels for by in panel.values()]
    longest = max(every, key=lambda by: len(by))
    places = {name: i for i, name in enumerate(longest)}
    drawn = looks(["dense", *methods])
    rows, columns = len(grid), len(next(iter(grid.values())))
    with canvas(1.4 + max(5.0, 2.7 * columns), 0.6 + 2.6 * rows) as figure:
        cells = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (row, column, panel) in zip(cells, panels, strict=True):
            axes.axhline(dense.mean(), color=drawn["dense"].color, linewidth=1.2, label="dense")
            for method, values in panel.items():
                fractions = [name for name in values if ":" not in name]
                patterns = [name for name in values if ":" in name]
                for i, some in enumerate((fractions, patterns)):
                    label = method if i == (not fractions) else "_"
                    if some:
                        x = [places[name] for name in some]
                        stacked = np.stack([values[name] for name in some])
                        line(axes, x, stacked, label, drawn[method], drawn[method].marker)
            axes.set_xticks(list(places.values()), list(places))
            axes.set(title=", ".join(filter(None, (row, column))), yscale="log")
        plain_log_axis(cells[0], [dense, *(values for by in every for values in by.values())])
        figure.supxlabel("Sparsity", fontsize=9)
        figure.supylabel("Perplexity of a character", fontsize=9)
        figure.key(cells[0])
    return figure.png


def sparsities(allocations: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """PNG of the sparsity of each layer, in the order of data; allocation -> path -> (runs,)."""
    drawn = looks(allocations)
    with canvas(7.4, 3.4) as figure:
        axes = figure.subplots()
        for name, layers in allocations.items():
            stacked = 100 * np.stack(list(layers.values()))
            line(axes, range(len(stacked)), stacked, name, drawn[name], drawn[name].marker)
        layer_axis(axes, layers)
        axes.set(title="Sparsity of each layer (%)", ylim=(0, 102))
        figure.key(axes)
    return figure.png


def layer_axis(axes: Axes, paths: Iterable[str]) -> None:
    """Short names of the layers below the axes."""
    names = [path.removesuffix("/kernel").replace("block_", "").replace("/", " ") for path in paths]
    names = [name.replace("attention ", "").replace("mlp ", "") for name in names]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_xlabel("Block and layer, in the order of data")


def plain_log_axis(axes: Axes, values: Sequence[np.ndarray]) -> None:
    """Numbers as 2, 5, 10 in place of powers of ten."""
    many = max(map(np.max, values)) > 30 * min(map(np.min, values))
    subs = (1.0, 3.0) if many else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.yaxis.set_major_locator(LogLocator(10, subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()


def down_the_layers(methods: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """PNG of the error of each layer, in the order of data; method -> path -> (runs,)."""
    drawn = looks(["dense", *methods])
    with canvas(7.4, 3.6) as figure:
        axes = figure.subplots()
        for method, errors in methods.items():
            stacked = np.stack(list(errors.values()))
            line(axes, range(len(stacked)), stacked, method, drawn[method], drawn[method].marker)
        layer_axis(axes, errors)
        axes.set(title="Relative error of each layer's output", yscale="log")
        plain_log_axis(axes, [value for by in methods.values() for value in by.values()])
        figure.key(axes)
    return figure.png
