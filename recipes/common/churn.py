"""How masks change over training: measured, and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import rc_context
from matplotlib.figure import Figure

import jaxprune as jp
from recipes.common.figures.style import STYLE, Curve, Look, band, looks, png, steps_locator


def masks(opt_state: Any) -> Any:
    """A copy of its masks, which outlives the state."""
    return jax.tree.map(jnp.copy, jp.get_masks(opt_state))


def measure(opt_state: Any, first: Any, previous: Any) -> dict[str, list[float]]:
    """What a line of metrics.jsonl says of the masks in a stack of states; lists are over seeds.

    Beside the sparsity, the overlap (intersection over union) with the first masks of training and
    with those of the previous line, and, where the optimizer remembers it (`jp.itop`), R_s, the
    fraction of all prunable weights that was ever in the masks.
    """
    return {name: values.tolist() for name, values in _numbers(opt_state, first, previous).items()}


@jax.jit
@jax.vmap
def _numbers(opt_state: Any, first: Any, previous: Any) -> dict[str, jax.Array]:
    now = jp.get_masks(opt_state)
    numbers = {
        "sparsity": jp.sparsity(now),
        "overlap_first": jp.overlap(now, first),
        "overlap_previous": jp.overlap(now, previous),
    }
    if optax.tree.get_all_with_path(opt_state, "ever_active"):
        numbers["ever_active"] = 1 - jp.sparsity(jp.ever_active(opt_state))
    return numbers


def picture(
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
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 2.7), layout="constrained")
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
        figure.legend(*three[0].get_legend_handles_labels(), loc="outside right upper")
        return png(figure)


def _moved(curve: Curve) -> Curve:
    """Only the points where masks had changed, if any had: between updates the overlap is 1."""
    steps, values = np.asarray(curve[0]), np.asarray(curve[1])
    moved = (values < 1).any(1)
    return (steps[moved].tolist(), values[moved]) if moved.any() else curve
