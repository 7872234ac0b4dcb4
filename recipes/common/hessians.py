"""The Hessians of trained seeds: eigenvalues, trace, spectrum, and what a product takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxprune as jp
from recipes.common import lanes, timing
from recipes.common.figures.planes import Curvature
from recipes.common.planes import Measure, Params


class Curved(NamedTuple):
    """The Hessians of one arm; the first axis of every array is that of seeds."""

    eigenvalues: np.ndarray  # (seeds, k)
    errors: np.ndarray  # (seeds, k)
    trace: np.ndarray  # (seeds,)
    trace_error: np.ndarray  # (seeds,)
    nodes: np.ndarray  # (seeds, probes, steps)
    weights: np.ndarray  # (seeds, probes, steps)
    dimension: int  # weights that are kept


def curve(
    loss: Measure,
    stack: Params,
    masks: Any,
    key: jax.Array,
    eigenvalues: int,
    steps: int,
    density_probes: int,
    trace_probes: int,
) -> Curved:
    """Eigenvalues, trace and spectrum of every seed."""
    found, dimension = [], 0
    for i in range(len(jax.tree.leaves(stack)[0])):
        params, own = lanes.lane_of(stack, i), lanes.lane_of(masks, i)
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        pairs = jp.hessian_eigenvalues(keys[0], loss, params, eigenvalues, steps, own)
        trace = jp.hessian_trace(keys[1], loss, params, trace_probes, own)
        spectrum = jp.hessian_spectrum(keys[2], loss, params, density_probes, steps, own)
        dimension = int(spectrum.dimension)
        found.append((pairs.values, pairs.errors, *trace, spectrum.nodes, spectrum.weights))
    columns = [np.stack(parts) for parts in zip(*found, strict=True)]
    return Curved._make((*columns, dimension))


def product_time(loss: Measure, params: Params, rounds: int = 15) -> dict[str, float]:
    """Milliseconds of a gradient and of a Hessian-vector product, side by side; their ratio."""
    gradient = jax.jit(lambda loss, params: jax.grad(loss)(params))
    runs = {
        "gradient": lambda: jax.block_until_ready(gradient(loss, params)),
        "product": lambda: jax.block_until_ready(jp.hvp(loss, params, params)),
    }
    for once in runs.values():
        once()
    seconds = timing.interleaved(runs, rounds, seed=0)
    ratio = np.median(np.asarray(seconds["product"]) / np.asarray(seconds["gradient"]))
    return {
        "gradient_ms": round(1e3 * float(np.median(seconds["gradient"])), 3),
        "product_ms": round(1e3 * float(np.median(seconds["product"])), 3),
        "ratio": round(float(ratio), 3),
    }


def densities(arms: Mapping[str, Curved]) -> dict[str, Curvature]:
    """The spectra on one grid, drawn with one width: a hundredth of their range."""
    nodes = [own.nodes for own in arms.values()]
    low, high = min(x.min() for x in nodes), max(x.max() for x in nodes)
    width = (high - low) / 100
    grid = np.linspace(low - 4 * width, high + 4 * width, 600)
    drawn = {}
    for arm, curved in arms.items():
        density = [
            np.asarray(jp.spectral_density(jp.Spectrum(*rows, curved.dimension), grid, width))
            for rows in zip(curved.nodes, curved.weights, strict=True)
        ]
        drawn[arm] = Curvature(curved.eigenvalues, grid, np.stack(density))
    return drawn
