"""A report as text and as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxprune.plots.canvas import COLORS, drawing

if TYPE_CHECKING:
    from jaxprune.report.report import Report
    from jaxprune.report.tally import Layer

WIDTH = 100  # columns of text


def table(report: Report) -> str:
    """The report as text, without empty columns.

    The column `+/-` is how many more or fewer weights are kept than in the target, and `ever` the
    fraction ever active. If paths are too long for WIDTH columns, their first parts become
    headings.
    """
    sums = [report.prunable]
    sums += [report.never_pruned] if report.never_pruned.total else []
    sums += [report.activations] if report.activations.flops else []
    sums += [report.total]
    columns = [cells for cells in _columns([*report.layers, *sums]) if any(cells[1:])]
    columns = [[cell.rjust(max(map(len, cells)) + 2) for cell in cells] for cells in columns]
    heading, *numbers = ("".join(cells) for cells in zip(*columns, strict=True))
    names = _headed([layer.path for layer in report.layers], WIDTH - len(heading))
    first = max(len(name) for _, name in [*names, *(("", row.path) for row in sums)])

    rule = "-" * (first + len(heading))
    lines, above = ["layer".ljust(first) + heading, rule], ""
    for (head, name), cells in zip(names, numbers, strict=False):
        lines += [head] if head not in ("", above) else []
        lines, above = [*lines, name.ljust(first) + cells], head
    last = numbers[len(names) :]
    lines += [rule, *(row.path.ljust(first) + cells for row, cells in zip(sums, last, strict=True))]
    for remark in [*(f"warning: {text}" for text in report.warnings), *report.notes]:
        lines += textwrap.wrap(remark, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(line.rstrip() for line in lines)


def _headed(paths: Sequence[str], width: int) -> list[tuple[str, str]]:
    """(heading, name) of each path, with as few parts in the headings as the width allows."""

    def split(path: str, depth: int) -> tuple[str, str]:
        parts = path.split("/")
        if not 0 < depth < len(parts):
            return "", path
        return "/".join(parts[:depth]), "  " + "/".join(parts[depth:])

    for depth in range(1 + max(path.count("/") for path in paths)):
        names = [split(path, depth) for path in paths]
        if all(len(name) <= width for _, name in names):
            break
    return names


def _columns(rows: Sequence[Layer]) -> list[list[str]]:
    """The cells of each column under its heading; empty where there is no number."""
    off = [0 if row.target_kept is None else row.kept - row.target_kept for row in rows]
    return [
        ["shape", *("x".join(map(str, row.shape or ())) for row in rows)],
        ["kept", *(f"{row.kept:,}" if row.total else "" for row in rows)],
        ["total", *(f"{row.total:,}" if row.total else "" for row in rows)],
        ["sparsity", *(f"{row.sparsity:.4f}" if row.total else "" for row in rows)],
        ["target", *("" if row.target is None else f"{row.target:.4f}" for row in rows)],
        ["+/-", *(f"{n:+,}" if n else "" for n in off)],
        ["outside", *(f"{row.outside:,}" if row.outside else "" for row in rows)],
        ["ever", *(_ever(row) for row in rows)],
        ["FLOPs", *(_short(row.flops) for row in rows)],
        ["sparse", *(_short(row.sparse_flops) for row in rows)],
        ["BOPs", *(_short(row.bops) for row in rows)],
        ["bits", *(_short(row.coded_bits) for row in rows)],
    ]


def _ever(row: Layer) -> str:
    return "" if row.ever_active is None else f"{row.ever_active / max(row.total, 1):.4f}"


def _short(flops: float | None) -> str:
    """Exact below ten thousand, then four digits: `2,560`, `470.4 k`, `4.089 G`."""
    if flops is None or flops < 10_000:
        return "" if flops is None else f"{flops:,.0f}"
    value, units = flops / 1_000, "kMGTPE"
    while value >= 999.95:
        value, units = value / 1_000, units[1:]
    return f"{value:#.4g} {units[0]}"


def density_by_layer(report: Report, ax: Any = None) -> Any:
    """The density of each layer, top to bottom: the matplotlib figure.

    Bars from zero; or, where densities differ more than tenfold, dots on a logarithmic axis, which
    has no zero for a bar to start from.
    """
    with drawing("report.plot"):
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator

        layers, everything = report.layers, 1 - report.prunable.sparsity
        if ax is None:  # no pyplot: it would keep every figure, and is not safe in threads
            longest = max(len(layer.path) for layer in layers)
            size = (5.0 + 0.065 * longest, 1.0 + 0.22 * len(layers))
            ax = Figure(figsize=size, layout="constrained").add_subplot()
        densities = [1 - layer.sparsity for layer in layers]
        wanted = [(y, row.target) for y, row in enumerate(layers) if row.target not in (None, 1.0)]
        targets = {y: 1 - target for y, target in wanted}
        positive = [d for d in (*densities, *targets.values()) if d > 0] or [1.0]
        low, high = min(positive), max(positive)
        logarithmic = high > 10 * low
        if logarithmic:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
            ax.xaxis.set_minor_locator(NullLocator())
            alive = [(density, y) for y, density in enumerate(densities) if density > 0]
            ax.plot(*zip(*alive, strict=True), "o", color=COLORS[2], ms=5, label="kept")
        else:
            ax.barh(range(len(layers)), densities, height=0.7, color=COLORS[2])
        ax.set_xlim(low / 2 if logarithmic else 0, min(1.15 * high, 1.0))
        label = f"all prunable: {everything:.2%}"
        ax.axvline(everything, color="0.35", lw=1, ls="--", label=label)
        if targets:
            mark = {"marker": "|", "ms": 9, "mew": 2, "ls": "none", "color": COLORS[1]}
            ax.plot(list(targets.values()), list(targets), label="target", clip_on=False, **mark)
        for y, density in enumerate(densities):
            note, color = (f"{density:.2%}", "black") if density > 0 else ("none kept", "#c0392b")
            edge = ((1, y), (46, 0), ax.get_yaxis_transform(), "offset points")
            ax.annotate(note, *edge, ha="right", va="center", fontsize=8, color=color)
        ax.set_yticks(range(len(layers)), [layer.path for layer in layers], fontsize=8)
        ax.set_ylim(len(layers) - 0.5, -0.5)  # the first layer on top
        ax.xaxis.set_major_formatter(lambda density, _: f"{100 * density:g}%")
        ax.set_xlabel("weights kept", fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", visible=logarithmic)  # a dot is read along its row
        ax.tick_params(axis="y", length=0)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8)
        return ax.figure
