"""Figures of images, as PNG: sets of a few images a class, and the loss that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recipes.common.figures.style import COLORS, canvas


def over_time(sets: Mapping[int, np.ndarray], mean: np.ndarray, std: np.ndarray) -> bytes:
    """PNG of the first image of each class at some steps, and of the last set as a grid.

    Args:
      sets: step -> images (classes, n, h, w, c), normalized.
      mean, std: what normalized them, by channel (c,).
    """
    steps, last = sorted(sets), sets[max(sets)]
    classes, n = last.shape[:2]
    shown = last[:, : min(n, 10)]
    columns = [sets[step][:, 0] for step in steps] + list(shown.swapaxes(0, 1))
    raw = np.stack(columns, 1) * std + mean
    low, high = np.percentile(raw, [0.5, 99.5])
    raw = np.clip((raw - low) / (high - low), 0, 1)
    gap = len(steps)
    inches = 0.52 * (len(columns) + 0.9), 0.52 * classes + 0.4
    with canvas(*inches, layout="compressed", grid=False) as figure:
        ratios = [1] * gap + [0.4] + [1] * (len(columns) - gap)
        axes = figure.subplots(
            classes, len(ratios), gridspec_kw={"width_ratios": ratios}, squeeze=False
        )
        for row in range(classes):
            for column, cell in enumerate(axes[row]):
                cell.set(xticks=[], yticks=[], frame_on=False)
                if column == gap:
                    continue
                image = raw[row, column - (column > gap)]
                cell.imshow(
                    image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1
                )
            axes[row, 0].set_ylabel(row, rotation=0, va="center", ha="right", fontsize=8)
        for column, step in enumerate(steps):
            axes[0, column].set_title(f"{step:,}", fontsize=7, fontweight="normal", loc="center")
        axes[0, gap + 1].set_title(f"step {steps[-1]:,}, all of a class", fontsize=7, loc="left")
    return figure.png


def chosen(maps: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """PNG of a map of each method and of the pixels that it chooses: (h, w), and bool (h, w)."""
    with canvas(1.9 * len(maps), 2.2, layout="compressed", grid=False) as figure:
        several = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, (method, (values, mask)) in zip(several, maps.items(), strict=True):
            axes.imshow(values, cmap="gray")
            rows, columns = np.nonzero(mask)
            size = 200 / max(mask.shape)
            axes.scatter(columns, rows, s=size, color=COLORS[1], linewidths=0)
            axes.set(title=method, xticks=[], yticks=[])
    return figure.png


def loss(steps: Sequence[int], values: np.ndarray) -> bytes:
    """PNG of a loss over steps, values (points, seeds)."""
    with canvas(5.0, 2.6) as figure:
        axes = figure.subplots()
        axes.plot(steps, values.mean(1), color=COLORS[1])
        axes.fill_between(steps, values.min(1), values.max(1), color=COLORS[1], alpha=0.2, lw=0)
        axes.set(title="Loss of the images", xlabel="Step")
        if (values > 0).all():
            axes.set_yscale("log")
    return figure.png
