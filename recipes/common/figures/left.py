"""Figures of accuracy against what is left, as PNG: of the weights, of the FLOPs, of the width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from jaxprune.trees import named_leaves
from recipes.common import report
from recipes.common.figures.style import (
    MANY,
    STROKES,
    Canvas,
    Curve,
    Look,
    band,
    canvas,
    looks,
    steps_locator,
)

TICKS = (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
MORE_TICKS = (100, 70, 50, 35, 25, 20, 15, 10, 7, 5, 3, 2, 1)  # for a short axis


def weights_left(
    arms: Mapping[str, Curve], dense: np.ndarray, near: float = 0.03, what: str = "Weights"
) -> bytes:
    """PNG of the accuracy of each arm, whole and near that of the dense networks.

    Args:
      arms: fractions of the weights that are left (phases,), accuracies (phases, replicates).
      dense: accuracies of the dense networks (replicates,).
      near: how far below them the second panel reaches.
      what: is left.
    """
    with canvas(7.0, 2.9) as figure:
        whole, close = figure.subplots(1, 2)
        for axes in (whole, close):
            draw(axes, arms, dense)
            axes.set_xlabel(f"{what} left (%)")
        whole.set(title="Test accuracy (%)")
        close.set(title="The same, near dense")
        top = 100 * max(dense.max(), *(np.max(values) for _, values in arms.values()))
        close.set_ylim(100 * (dense.mean() - near), top + 20 * near)
        if len(arms) > MANY:
            figure.key(whole)
        else:
            whole.legend(loc="best")
    return figure.png


def draw(
    axes: Axes,
    arms: Mapping[str, Curve],
    dense: np.ndarray,
    drawn: Mapping[str, Look] | None = None,
) -> None:
    """The accuracies of all arms and of the dense networks, on a `percent_axis`."""
    drawn = drawn or looks(["dense", *arms])
    dense_line(axes, dense, drawn["dense"])
    for arm, (left, values) in arms.items():
        band(axes, ([100 * part for part in left], values), arm, drawn[arm], points=True)
    percent_axis(axes, [part for left, _ in arms.values() for part in left])


def rates(arms: Mapping[str, Curve], dense: np.ndarray, drawn: Mapping[str, Look]) -> bytes:
    """PNG of the dead rate of each arm over the weights left; as in `weights_left`."""
    with canvas(4.5, 2.9) as figure:
        axes = figure.subplots()
        draw(axes, arms, dense, drawn)
        axes.set(title="Units that give zero (%)", xlabel="Weights left (%)")
        figure.key(axes)
    return figure.png


def dense_line(axes: Axes, values: np.ndarray, look: Look) -> None:
    """The accuracy of dense networks (seeds,) over all of the axis, with its band."""
    worst, best = 100 * values.min(), 100 * values.max()
    axes.axhspan(worst, best, color=look.color, alpha=0.15, linewidth=0)
    mean = 100 * values.mean()
    axes.axhline(mean, color=look.color, linewidth=1.2, linestyle="--", label="dense")


def percent_axis(axes: Axes, left: Sequence[float]) -> None:
    """Percent of the weights on a logarithmic axis, from many to few."""
    lowest, highest = 100 * min(left) / 1.15, 1.15 * 100 * max(left)
    within = lambda ticks: [tick for tick in ticks if lowest <= tick <= highest]
    ticks = within(TICKS) if len(within(TICKS)) > 2 else within(MORE_TICKS)
    axes.set_xscale("log")
    axes.set_xlim(highest, lowest)
    axes.xaxis.set_major_locator(FixedLocator(ticks or [100 * max(left)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))


def flops_left(
    at_once: Mapping[str, Curve],
    trained_on: Mapping[str, Curve],
    dense: np.ndarray,
    asked: Sequence[float],
    drawn: Mapping[str, Look] | None = None,
) -> bytes:
    """PNG of the accuracy of each arm right after each pruning, and after training on.

    Args:
      at_once, trained_on: fractions of the FLOPs that are left (rounds,), accuracies (rounds,
        seeds).
      dense: accuracies of the dense networks (seeds,).
      asked: the fractions that were aimed at, which are marked on the axis.
      drawn: the look of "dense" and of each arm.
    """
    with canvas(8.0, 2.9) as figure:
        panels = {"Test accuracy (%), just pruned": at_once, "Trained on": trained_on}
        several = figure.subplots(1, 2)
        for axes, (title, arms) in zip(several, panels.items(), strict=True):
            draw(axes, arms, dense, drawn)
            axes.set(title=title, xlabel="FLOPs left (%)")
            axes.xaxis.set_major_locator(FixedLocator([100 * share for share in asked]))
        figure.key(several[0])
    return figure.png


def over_phases(arms: Mapping[str, np.ndarray], title: str) -> bytes:
    """PNG of a number over phases, from phase 0 on: by arm (phases, replicates)."""
    drawn = looks(["dense", *arms])
    with canvas(5.0, 2.7) as figure:
        axes = figure.subplots()
        for arm, values in arms.items():
            band(axes, (range(len(values)), values), arm, drawn[arm], points=True, scale=1)
        axes.set(title=title, xlabel="Phase")
        axes.xaxis.set_major_locator(steps_locator(10))
        figure.key(axes)
    return figure.png


def over_widths(accuracy: Mapping[str, Curve], gap: Mapping[str, Curve], equal: str) -> bytes:
    """PNG of test accuracy and of the gap to dense against width, each arm's with its band.

    Args:
      accuracy: of the dense arm and the others: (widths, fractions (widths, seeds)).
      gap: of the others, accuracy minus that of dense.
      equal: what all widths have in common.
    """
    drawn = looks(accuracy)
    with canvas(7.0, 2.7) as figure:
        for axes, curves, title in zip(
            figure.subplots(1, 2),
            (accuracy, gap),
            ("Test accuracy (%)", "Accuracy minus dense (points)"),
            strict=True,
        ):
            for arm, (widths, values) in curves.items():
                order = np.argsort(widths)
                band(
                    axes, ([widths[i] for i in order], values[order]), arm, drawn[arm], points=True
                )
            axes.set(title=title, xlabel=f"Width, at equal {equal}")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(sorted(widths)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda width, _: f"{width:g}")
            if curves is gap:
                axes.axhline(0, color=drawn["dense"].color, linewidth=1.6)
            else:
                handles = axes.get_legend_handles_labels()
        figure.legend(*handles, loc="outside right upper")
    return figure.png


PER_ROW = 4  # small axes side by side
FLOOR = 0.7  # where a layer is drawn that keeps none


class Line(NamedTuple):
    """What a method comes to at several sparsities."""

    left: Sequence[float]  # the fraction of weights, (points,)
    accuracy: np.ndarray  # (points, seeds)
    collapsed: np.ndarray  # bool (points, seeds): whether a layer is empty


def accuracy(lines: Mapping[str, Line], dense: np.ndarray, drawn: Mapping[str, Look]) -> bytes:
    """PNG of the test accuracy of all methods against weights left; `dense` is (seeds,)."""
    with canvas(7.0, 3.2) as figure:
        axes = figure.subplots()
        dense_line(axes, dense, drawn["dense"])
        for method, line in lines.items():
            _draw(axes, line, method, drawn[method])
        axes.set(title="Test accuracy (%)", xlabel="Weights left (%)")
        percent_axis(axes, [left for line in lines.values() for left in line.left])
        figure.key(axes)
    return figure.png


def controls(
    methods: Mapping[str, Mapping[str, Line]], dense: np.ndarray, drawn: Mapping[str, Look]
) -> bytes:
    """PNG of small axes, one for each method: its own line and those of its controls."""
    with _grid(len(methods)) as (figure, grid):
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
    return figure.png


def layers(layers: Mapping[str, Mapping[str, Curve]], drawn: Mapping[str, Look]) -> bytes:
    """PNG of small axes, one for each layer: how many weights each method keeps there.

    The numbers are (points, seeds); a layer that keeps none is a cross on the floor.
    """
    with _grid(len(layers), sharey=False) as (figure, grid):
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
        figure.key(grid[0])
        figure.supxlabel("Weights left in all (%)", fontsize=9)
        figure.supylabel("Weights kept", fontsize=9)
    return figure.png


def kept_by_layer(masks: Any) -> dict[str, np.ndarray]:
    """{path: weights kept by each seed, int (seeds,)} of stacked masks, layer 2 before layer 10."""
    sizes = {path: mask[0].size for path, mask in named_leaves(masks) if mask is not None}
    density = report.layer_density(masks)
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


@contextmanager
def _grid(n: int, sharey: bool = True) -> Iterator[tuple[Canvas, list[Axes]]]:
    rows, columns = -(-n // PER_ROW), min(n, PER_ROW)
    with canvas(1.4 + 1.9 * columns, 0.5 + 1.9 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
        for unused in grid[n:]:
            unused.remove()
        yield figure, list(grid[:n])
