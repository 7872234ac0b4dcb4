"""Figures of language models, as PNG: bits a character over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def over_sparsity(methods: Mapping[str, Mapping[str, np.ndarray]], dense: np.ndarray) -> bytes:
    """PNG of perplexity over sparsities: a line for each method, a band over runs.

    Args:
      methods: method -> sparsity in words -> perplexities (runs,); lines join only fractions.
      dense: perplexities of the dense models (models,).
    """
    drawn = looks(["dense", *methods])
    with canvas(6.4, 3.2) as figure:
        axes = figure.subplots()
        places = {name: i for i, name in enumerate(next(iter(methods.values())))}
        axes.axhline(dense.mean(), color=drawn["dense"].color, linewidth=1.2, label="dense")
        for method, values in methods.items():
            fractions = [name for name in values if ":" not in name]
            patterns = [name for name in values if ":" in name]
            for i, names in enumerate((fractions, patterns)):
                label = method if i == (not fractions) else "_"
                if names:
                    x = [places[name] for name in names]
                    stacked = np.stack([values[name] for name in names])
                    line(axes, x, stacked, label, drawn[method], drawn[method].marker)
        axes.set_xticks(list(places.values()), list(places))
        axes.set(title="Perplexity of a character", xlabel="Sparsity", yscale="log")
        plain_log_axis(axes, [value for by in methods.values() for value in by.values()])
        figure.key(axes)
    return figure.png


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
        names = [path.replace("block_", "").replace("/", " ") for path in errors]
        names = [name.replace("attention ", "").replace("mlp ", "") for name in names]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set(title="Relative error of each layer's output", yscale="log")
        plain_log_axis(axes, [value for by in methods.values() for value in by.values()])
        axes.set_xlabel("Block and layer, in the order of data")
        figure.key(axes)
    return figure.png
