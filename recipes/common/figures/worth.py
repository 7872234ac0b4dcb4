"""What patterns gain, by sparsity: a panel for each shape and batch size."""

from __future__ import annotations

from matplotlib.ticker import FuncFormatter

import jaxprune as jp
from recipes.common.figures.style import canvas, looks


def ratios(table: jp.fast.Table) -> bytes:
    """PNG of `patterns_worth_it`: dense time / time, on a logarithmic axis."""
    panels = list(dict.fromkeys((row.shape, row.batch) for row in table.rows))
    drawn = looks(dict.fromkeys(row.pattern for row in table.rows))
    with canvas(2.6 * max(len(panels), 2) + 1.6, 3.2) as figure:
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (shape, batch) in zip(every, panels, strict=True):
            for row in table.rows:
                if (row.shape, row.batch) == (shape, batch):
                    look = drawn[row.pattern]
                    axes.plot(
                        *([100 * s for s in table.sparsities], row.ratios),
                        color=look.color,
                        linestyle=look.line,
                        marker=look.marker,
                        label=row.pattern,
                    )
            axes.axhline(1, color="#222222", linewidth=0.8)
            axes.set(title=f"{shape[0]} x {shape[1]}, batch {batch}", xlabel="Pruned (%)")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        every[0].set_ylabel("Dense time / time")
        figure.key(every[0])
    return figure.png
