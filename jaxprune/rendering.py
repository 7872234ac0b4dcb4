"""A report as text and as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxprune.report import Report
    from jaxprune.tally import Layer

WIDTH = 100  # columns of text; paths are shortened to fit


def table(report: Report) -> str:
    """The report in lines of at most WIDTH columns; columns of which nothing is known are left out.

    The column `+/-` is how many weights more or fewer are kept than the target keeps.
    """
    sums = [report.prunable]
    sums += [report.never_pruned] if report.never_pruned.total else []
    sums += [report.activations] if report.activations.flops else []
    rows = [*report.layers, *sums, report.total]
    columns = [column for column in _columns(rows) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    paths = _shortened([row.path for row in report.layers], WIDTH - sum(widths) - 2 * len(widths))
    names = ["layer", *paths, *(row.path for row in rows[len(paths) :])]
    first = max(map(len, names))
    lines = [
        "  ".join([name.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
        for name, *cells in zip(names, *columns, strict=True)
    ]
    rule = "-" * len(lines[0])
    lines = [lines[0], rule, *lines[1 : 1 + len(paths)], rule, *lines[1 + len(paths) :]]
    remarks = [f"warning: {text}" for text in report.warnings] + list(report.notes)
    for text in remarks:
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(line.rstrip() for line in lines)


def _columns(rows: Sequence[Layer]) -> list[list[str]]:
    """The cells of each column under its heading; empty where there is nothing to say."""
    off = [0 if row.target_kept is None else row.kept - row.target_kept for row in rows]
    return [
        ["shape", *("x".join(map(str, row.shape or ())) for row in rows)],
        ["kept", *(f"{row.kept:,}" if row.total else "" for row in rows)],
        ["total", *(f"{row.total:,}" if row.total else "" for row in rows)],
        ["sparsity", *(f"{row.sparsity:.4f}" if row.total else "" for row in rows)],
        ["target", *("" if row.target is None else f"{row.target:.4f}" for row in rows)],
        ["+/-", *(f"{n:+,}" if n else "" for n in off)],
        ["outside", *(f"{row.outside:,}" if row.outside else "" for row in rows)],
        ["FLOPs", *(_short(row.flops) for row in rows)],
        ["sparse", *(_short(row.sparse_flops) for row in rows)],
    ]


def _short(flops: int | None) -> str:
    """Exact below ten thousand, then four digits: `2,560`, `470.4 k`, `4.089 G`."""
    if flops is None or flops < 10_000:
        return "" if flops is None else f"{flops:,}"
    value, units = flops / 1_000, "kMGTPE"
    while value >= 999.95:
        value, units = value / 1_000, units[1:]
    return f"{value:#.4g} {units[0]}"


def _shortened(paths: Sequence[str], width: int) -> list[str]:
    """The paths in `width` columns, without a middle that makes two of them look alike."""
    room = max(width, 16) - 3
    cut = lambda path, head: (
        path if len(path) <= room + 3 else f"{path[:head]}...{path[len(path) - room + head :]}"
    )
    heads = sorted(range(1, room), key=lambda head: abs(head - room // 2))
    tries = ([cut(path, head) for path in paths] for head in heads)
    return next((names for names in tries if len(set(names)) == len(set(paths))), list(paths))


def density_bars(report: Report, ax: Any = None) -> Any:
    """The density of each layer as a bar, top to bottom: the matplotlib figure.

    The axis is logarithmic if densities differ more than tenfold.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator
    except ImportError as error:
        raise ImportError(
            "plot needs matplotlib: pip install 'jaxprune[recipes]'. Without it, print the report, "
            "or draw from its to_dict()."
        ) from error
    layers, everything = report.layers, 1 - report.prunable.sparsity
    if ax is None:  # no pyplot: it would keep every figure, and is not safe in threads
        size = (6.4, 1.0 + 0.22 * len(layers))
        ax = Figure(figsize=size, layout="constrained").add_subplot()
    densities = [1 - layer.sparsity for layer in layers]
    targets = {y: 1 - row.target for y, row in enumerate(layers) if row.target not in (None, 1.0)}
    positive = [d for d in (*densities, *targets.values()) if d > 0] or [1.0]
    low, high = min(positive), min(1.15 * max(positive), 1.0)
    if high > 10 * low:
        steps = (1, 2, 5) if high < 1000 * low else (1,)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=steps))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(low / 2 if high > 10 * low else 0, high)
    ax.barh(range(len(layers)), densities, height=0.7, color="#4878a8")
    ax.axvline(everything, color="0.35", lw=1, ls="--", label=f"all prunable: {everything:.2%}")
    if targets:
        mark = {"marker": "|", "ms": 9, "mew": 2, "ls": "none", "color": "#e07b39"}
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
    ax.tick_params(axis="y", length=0)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)
    return ax.figure
