"""Pictures of arrays that any training loop has: curves, pairs of seeds, paths between them.

Each function returns a matplotlib `Figure`: save it with `figure.savefig("name.png")`; a notebook
shows it. Matplotlib is not installed with jaxprune: `pip install matplotlib`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxprune.plots.canvas import COLORS, Curve, band, drawing, looks, steps_locator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERS = 12  # seeds up to which each cell says its value
MANY = 3  # more arms than this have their legend beside the axes
NOT_MEASURED = "n/a"


def training(
    accuracy: Mapping[str, tuple[Any, Any]],
    sparsity: Mapping[str, tuple[Any, Any]] | None = None,
    pruned_between: tuple[float, float] | None = None,
    title: str = "Test accuracy (%)",
) -> Figure:
    """Accuracy and sparsity over steps: the mean over seeds as a line, their range as a band.

    Args:
      accuracy: arm -> (steps (points,), fractions (points,) or (points, seeds)).
      sparsity: arm -> the same, for arms of `accuracy`; None for none. If it changes, it gets its
        own axes.
      pruned_between: the first step and the last in which masks change: they are shaded.
      title: of the left axes.

    Returns:
      A matplotlib `Figure`.

    Raises:
      ValueError: without an arm, if an arm's values are not one row a step, or if sparsity has an
        arm that accuracy lacks.
      ImportError: without matplotlib.
    """
    curves = {arm: _curve("accuracy", arm, points) for arm, points in accuracy.items()}
    others = {arm: _curve("sparsity", arm, points) for arm, points in (sparsity or {}).items()}
    if not curves or not others.keys() <= curves.keys():
        raise ValueError(
            f"plots.training got accuracy of {list(curves)} and sparsity of {list(others)}; it "
            "wants at least one arm, and sparsity only of arms that have an accuracy."
        )
    panels = [(curves, title)]
    if any(np.ptp(values, 0).any() for _, values in others.values()):
        panels.append((others, "Sparsity (%)"))
    with drawing("plots.training"):
        figure = _figure(7.0, 2.7)
        left, *right = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (panel, title) in zip((left, *right), panels, strict=True):
            for label, look in looks(curves).items():
                if label in panel:
                    band(axes, panel[label], label, look)
            if pruned_between:
                axes.axvspan(*pruned_between, color="#efefef", zorder=0, label="pruning")
            axes.set(title=title, xlabel="Step")
            axes.set_xlim(0, max(max(steps) for steps, _ in curves.values()))
            axes.xaxis.set_major_locator(steps_locator(5))
        left.set_ylim(*_limits(curves))
        for axes in right:
            axes.set_ylim(-2, 102)
        if len(curves) > MANY:
            figure.legend(*left.get_legend_handles_labels(), loc="outside right upper")
        else:
            left.legend(loc="best")
        return _settled(figure)


class Matrix(NamedTuple):
    """One heat map of `pairs`, and the format of its cells.

    Attributes:
      values: (seeds, seeds); nan was not measured. The diagonal is left blank.
      form: the format of a number.
      low: the lower end of the colors; `high` the upper, None for the largest off the diagonal.
    """

    values: Any
    form: str = "{:.1f}"
    low: float = 0.0
    high: float | None = None


def pairs(matrices: Mapping[str, Any]) -> Figure:
    """Heat maps of the results of `pairwise`, side by side.

    Args:
      matrices: title -> (seeds, seeds), or a `plots.Matrix`, which adds the format of numbers and
        the ends of the colors.

    Returns:
      A matplotlib `Figure`. Up to 12 seeds each cell says its value.

    Raises:
      ValueError: without a matrix, or for one that is not square.
      ImportError: without matplotlib.
    """
    maps = {}
    for title, given in matrices.items():
        matrix = given if isinstance(given, Matrix) else Matrix(given)
        values = np.asarray(matrix.values, np.float64)
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            raise ValueError(
                f"plots.pairs wants a square matrix, (seeds, seeds), as pairwise returns it; "
                f"'{title}' has shape {values.shape}."
            )
        maps[title] = matrix._replace(values=values)
    if not maps:
        raise ValueError("plots.pairs got no matrix; it wants {title: (seeds, seeds)}.")
    with drawing("plots.pairs", **{"axes.grid": False}):
        figure = _figure(0.4 + 2.75 * len(maps), 2.9)
        every_axes = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, (title, matrix) in zip(every_axes, maps.items(), strict=True):
            _heat_map(figure, axes, title, matrix)
        return _settled(figure)


def _heat_map(figure: Figure, axes: Axes, title: str, matrix: Matrix) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    seeds = len(matrix.values)
    diagonal = np.eye(seeds, dtype=bool)
    values = np.where(diagonal, np.nan, matrix.values)
    high = np.max(values, initial=0, where=np.isfinite(values))
    high = max(high if matrix.high is None else matrix.high, matrix.low + 1e-9)
    colors: Any = colormaps["YlGnBu"]
    image = axes.imshow(values, cmap=colors, vmin=matrix.low, vmax=high)
    if seeds <= MOST_NUMBERS:
        for i, j in np.argwhere(~diagonal):
            dark = (values[i, j] - matrix.low) / (high - matrix.low) > 0.55
            known = np.isfinite(values[i, j])
            text = matrix.form.format(values[i, j]) if known else NOT_MEASURED
            axes.text(j, i, text, ha="center", va="center", **_ink(seeds, dark))
    axes.set(title=title, xlabel="Seed", ylabel="Seed")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)


def _ink(seeds: int, dark: bool) -> dict[str, Any]:
    return {"fontsize": min(8.0, 52 / seeds), "color": "white" if dark else "#222222"}


class Paths(NamedTuple):
    """One panel of `paths`.

    Attributes:
      alphas: (points,), from 0 to 1.
      values: (pairs, points): the error of each pair on its way, fractions.
      others: name -> (points,): further curves.
    """

    alphas: Any
    values: Any
    others: Mapping[str, Any] = {}


def paths(
    panels: Mapping[str, Paths | tuple[Any, Any]],
    threshold: float | None = None,
    kind: str = "seed",
    title: str = "Test error (%)",
) -> Figure:
    """Error along the paths between networks: each pair as a thin line, their mean as a thick one.

    Args:
      panels: title -> (alphas (points,), errors (pairs, points), fractions), or a `plots.Paths`,
        which has further curves.
      threshold: how many points a stable pair may rise: a gray band from the mean of the ends.
      kind: the name of the networks at the ends.
      title: of the vertical axis.

    Returns:
      A matplotlib `Figure`.

    Raises:
      ValueError: without a panel, or if errors are not (pairs, points).
      ImportError: without matplotlib.
    """
    checked = {}
    for name, given in panels.items():
        panel = given if isinstance(given, Paths) else Paths(*given)
        alphas, values = np.asarray(panel.alphas), np.asarray(panel.values)
        if alphas.ndim != 1 or values.ndim != 2 or values.shape[1] != len(alphas):
            raise ValueError(
                f"plots.paths wants alphas (points,) and errors (pairs, points); of '{name}' they "
                f"are {alphas.shape} and {values.shape}."
            )
        checked[name] = Paths(alphas, values, panel.others)
    if not checked:
        raise ValueError("plots.paths got no panel; it wants {title: (alphas, errors)}.")
    with drawing("plots.paths"):
        figure = _figure(3.5 * len(checked), 3.0)
        figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr,call-arg]
        every_axes = figure.subplots(1, len(checked), squeeze=False, sharey=True)[0]
        for i, (axes, (name, panel)) in enumerate(zip(every_axes, checked.items(), strict=True)):
            color, values = COLORS[i % len(COLORS)], 100 * panel.values
            ends = values[:, [0, -1]].mean()
            if threshold is not None:
                label = f"within {threshold:g} points"
                axes.axhspan(ends, ends + threshold, color="#ececec", zorder=0, label=label)
            axes.plot(panel.alphas, values.T, color=color, alpha=0.25, linewidth=0.7)
            mean = values.mean(0)
            axes.plot(panel.alphas, mean, color=color, linewidth=2.2, label="mean of the pairs")
            for style, (label, other) in zip(("--", ":"), panel.others.items(), strict=False):
                line = 100 * np.asarray(other)
                axes.plot(panel.alphas, line, style, color="#111111", label=label)
            axes.set(title=name, xlabel=f"From one {kind} (0) to another (1)")
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
        every_axes[0].set_ylabel(title)
        named: dict[str, Any] = {}
        for axes in every_axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                named.setdefault(label, handle)
        columns = min(len(named), 2 * len(checked))  # as many as there is room for
        below: Any = {"loc": "outside lower center", "ncols": columns, "fontsize": 7.5}
        figure.legend(list(named.values()), list(named), **below)
        return _settled(figure)


def _curve(what: str, arm: str, points: tuple[Any, Any]) -> Curve:
    """(steps, values (points, seeds)), checked."""
    steps, values = np.asarray(points[0]), np.asarray(points[1], np.float64)
    if steps.ndim != 1 or not len(steps) or values.ndim not in (1, 2) or len(values) != len(steps):
        raise ValueError(
            f"plots.training wants steps (points,) and fractions (points,) or (points, seeds); "
            f"{what} of '{arm}' has {steps.shape} and {values.shape}. If seeds come first, "
            "transpose."
        )
    return steps.tolist(), values.reshape(len(steps), -1)


def _limits(curves: Mapping[str, Curve]) -> tuple[float, float]:
    """Limits for all points after the first fifth, where accuracy climbs from chance."""
    settled = [100 * values[len(steps) // 5 :] for steps, values in curves.values()]
    low, high = min(v.min() for v in settled), max(v.max() for v in settled)
    margin = max(0.1 * (high - low), 0.5)
    return max(0.0, low - margin), min(100.5, high + margin)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # no pyplot: it would keep every figure

    return Figure(figsize=(width, height), layout="constrained")


def _settled(figure: Figure) -> Figure:
    """The figure with its ticks made now, in this style."""
    figure.draw_without_rendering()
    return figure
