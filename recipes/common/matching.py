"""Barriers between seeds before and after the neurons of one are matched to the other's."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import lanes
from recipes.common.figures.planes import Line, Panel
from recipes.common.planes import Losses, Params, through

STARTS = 5  # of weight matching


class Bend(NamedTuple):
    """One arm before and after weight matching; lists are over pairs of seeds."""

    panel: Panel  # through the first seed, the second, and the second matched to the first
    lines: dict[str, Line]  # from the first seed to the second, training loss
    barriers: dict[str, dict[str, list[float]]]  # "before" and "after" -> "loss" and "error"
    overlaps: dict[str, list[float]]  # of the masks, "before" and "after"; {} without masks


def align(
    losses: Losses,
    stack: Params,
    masks: Any,
    layers: Sequence[str],
    key: jax.Array,
    points: int,
    first_seed: int = 0,
) -> Bend:
    """Every pair of seeds before and after the second's neurons are matched to the first's."""
    coupling = jp.sequential_coupling(lanes.lane_of(stack, 0), layers)
    alphas = np.linspace(0, 1, points, dtype=np.float32)
    barriers: dict[str, dict[str, list[float]]] = {
        when: {"loss": [], "error": []} for when in ("before", "after")
    }
    overlaps: dict[str, list[float]] = {} if masks is None else {"before": [], "after": []}
    panel, lines, seeds = None, {}, len(jax.tree.leaves(stack)[0])
    names = f"seed {first_seed}", f"seed {first_seed + 1}"
    for i, j in itertools.combinations(range(seeds), 2):
        a, b = lanes.lane_of(stack, i), lanes.lane_of(stack, j)
        own_key = jax.random.fold_in(key, seeds * i + j)
        orders = jp.match_weights(own_key, a, b, coupling, starts=STARTS)
        ends = {"before": b, "after": jp.permute(b, coupling, orders)}
        for when, end in ends.items():
            along = jp.line(losses.both, a, jax.tree.map(jnp.subtract, end, a), alphas)
            for name, values in along.items():
                barriers[when][name].append(above_chord(alphas, np.asarray(values)))
            if panel is None:
                label = {"before": "as trained", "after": "matched"}[when]
                lines[when] = Line(label, alphas, np.asarray(along["loss"]))
            if masks is not None:
                own = lanes.lane_of(masks, j)
                moved = own if when == "before" else jp.permute(own, coupling, orders)
                overlaps[when].append(float(jp.overlap(lanes.lane_of(masks, i), moved)))
        if panel is None:
            labels = *names, f"{names[1]}, matched"
            panel = through(losses, dict(zip(labels, (a, *ends.values()), strict=True)), points)
    assert panel is not None
    return Bend(panel, lines, barriers, overlaps)


def above_chord(alphas: np.ndarray, values: np.ndarray) -> float:
    """The barrier of one line, in the precision of its values."""
    return float(np.max(values - ((1 - alphas) * values[0] + alphas * values[-1])))
