"""Curvature of the loss of networks under masks: sharp directions, and which of them stay."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import jaxprune as jp
from recipes.common import lanes
from recipes.common.lanes import Network

BINS = 10.0 ** np.linspace(-9, 1, 41)  # sizes of an entry of the diagonal; the ends take the rest


def of_stack(
    keys: jax.Array, loss: Any, probes: int, network: Network, dense: Any
) -> dict[str, Any]:
    """The Hessian of the training loss, for each seed.

    The largest eigenvalue and the trace are of the kept weights of `network`. The diagonal is of
    all prunable weights, at the params `dense`: its mean size, and how often each size occurs.
    """
    rows: list[tuple[Any, ...]] = []
    for i, key in enumerate(keys):
        params, masks, at = (lanes.lane_of(x, i) for x in (network.params, network.masks, dense))
        each = jax.random.split(key, 3)
        largest = jp.analysis.hessian_eigenvalues(each[0], loss, params, 1, probes, masks).values[0]
        trace = jp.analysis.hessian_trace(each[1], loss, params, probes, masks).mean
        pruned = sum(int((~mask).sum()) for mask in jax.tree.leaves(masks))
        weights = sum(x.size for x in jax.tree.leaves(params)) - pruned
        diagonal = jp.analysis.hessian_diagonal(each[2], loss, at, probes).mean
        rows.append((float(largest), float(trace) / weights, *sizes_of(diagonal, masks)))
    names = "largest_eigenvalue", "trace_per_weight", "diagonal_kept", "diagonal_pruned"
    told: dict[str, Any] = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    for i, name in ((4, "sizes_kept"), (5, "sizes_pruned")):
        told[name] = np.sum([row[i] for row in rows], 0).tolist()
    return told


def sizes_of(diagonal: Any, masks: Any) -> tuple[float, float, np.ndarray, np.ndarray]:
    """The mean absolute diagonal of kept and of pruned weights, and counts in `BINS`."""
    each = jax.tree.leaves(masks, is_leaf=lambda mask: mask is None)
    pairs = [(m, d) for m, d in zip(each, jax.tree.leaves(diagonal), strict=True) if m is not None]
    kept = np.concatenate([np.ravel(mask) for mask, _ in pairs])
    entries = np.concatenate([np.ravel(part) for _, part in pairs])
    size = np.abs(entries)
    parts = size[kept], size[~kept]
    of_kept, of_pruned = (float(part.mean()) if len(part) else 0.0 for part in parts)
    within = (np.clip(part, BINS[0], BINS[-1]) for part in parts)
    counts, of_others = (np.histogram(part, BINS)[0] for part in within)
    return of_kept, of_pruned, counts, of_others
