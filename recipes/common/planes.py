"""The training loss around networks and between them: planes, alignment, and curvature.

Planes and what they are drawn from; barriers between seeds before and after the neurons of one are
matched to those of the other; eigenvalues, trace and spectrum of the Hessians.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import lanes, timing
from recipes.common.data import Split
from recipes.common.figures.planes import Curvature, Line, Mark, Panel, square

Params = Any
Measure = Callable[[Params], Any]  # params -> {"loss", "error"}, or the loss alone


class Losses(NamedTuple):
    """The training loss as functions of the params, over batches that are on the device."""

    both: Measure  # {"loss", "error"}
    loss: Measure  # the loss alone: it has derivatives


def losses_on(module: nn.Module, split: Split, examples: int) -> Losses:
    """Loss and error on the first examples, in batches of at most 500, all of one size."""
    batches = math.ceil(examples / 500)
    size = examples // batches
    images, labels = (part[: batches * size] for part in split)
    stacked = jax.device_put(
        (images.reshape(batches, size, *images.shape[1:]), labels.reshape(batches, size))
    )

    def both(params: Params, batch: Any) -> dict[str, jax.Array]:
        logits: Any = module.apply({"params": params}, batch[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return {"loss": losses.mean(), "error": jnp.mean(jnp.argmax(logits, -1) != batch[1])}

    def loss(params: Params, batch: Any) -> jax.Array:
        return both(params, batch)["loss"]

    return Losses(jp.analysis.over_batches(both, stacked), jp.analysis.over_batches(loss, stacked))


def through(losses: Losses, three: dict[str, Params], points: int) -> Panel:
    """The training loss on the plane through three models, by name."""
    frame = jp.analysis.plane_through(*three.values())
    where = {label: jp.analysis.coordinates(frame, params) for label, params in three.items()}
    marks = [Mark(label, float(at[0]), float(at[1])) for label, at in where.items()]
    xs, ys = square(marks, points)
    return Panel(xs, ys, np.asarray(jp.analysis.plane(losses.both, *frame, xs, ys)["loss"]), marks)


def around(
    losses: Losses,
    label: str,
    params: Params,
    masks: Any,
    key: jax.Array,
    reach: float,
    points: int,
) -> Panel:
    """The training loss on a random, filter-normalized plane around a model."""
    x, y = (jp.analysis.random_direction(key, params, masks) for key in jax.random.split(key, 2))
    xs = np.linspace(-reach, reach, points, dtype=np.float32)
    values = jp.analysis.plane(losses.both, params, x, y, xs, xs)["loss"]
    return Panel(xs, xs, np.asarray(values), [Mark(label, 0.0, 0.0)])


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
        pairs = jp.analysis.hessian_eigenvalues(keys[0], loss, params, eigenvalues, steps, own)
        trace = jp.analysis.hessian_trace(keys[1], loss, params, trace_probes, own)
        spectrum = jp.analysis.hessian_spectrum(keys[2], loss, params, density_probes, steps, own)
        dimension = int(spectrum.dimension)
        found.append((pairs.values, pairs.errors, *trace, spectrum.nodes, spectrum.weights))
    columns = [np.stack(parts) for parts in zip(*found, strict=True)]
    return Curved._make((*columns, dimension))


def product_time(loss: Measure, params: Params, rounds: int = 15) -> dict[str, float]:
    """Milliseconds of a gradient and of a Hessian-vector product, side by side; their ratio."""
    gradient = jax.jit(lambda loss, params: jax.grad(loss)(params))
    runs = {
        "gradient": lambda: jax.block_until_ready(gradient(loss, params)),
        "product": lambda: jax.block_until_ready(jp.analysis.hvp(loss, params, params)),
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
            np.asarray(
                jp.analysis.spectral_density(
                    jp.analysis.Spectrum(*rows, curved.dimension), grid, width
                )
            )
            for rows in zip(curved.nodes, curved.weights, strict=True)
        ]
        drawn[arm] = Curvature(curved.eigenvalues, grid, np.stack(density))
    return drawn


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
    coupling = jp.analysis.sequential_coupling(lanes.lane_of(stack, 0), layers)
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
        orders = jp.analysis.match_weights(own_key, a, b, coupling, starts=STARTS)
        ends = {"before": b, "after": jp.analysis.permute(b, coupling, orders)}
        for when, end in ends.items():
            along = jp.analysis.line(losses.both, a, jax.tree.map(jnp.subtract, end, a), alphas)
            for name, values in along.items():
                barriers[when][name].append(above_chord(alphas, np.asarray(values)))
            if panel is None:
                label = {"before": "as trained", "after": "matched"}[when]
                lines[when] = Line(label, alphas, np.asarray(along["loss"]))
            if masks is not None:
                own = lanes.lane_of(masks, j)
                moved = own if when == "before" else jp.analysis.permute(own, coupling, orders)
                overlaps[when].append(float(jp.overlap(lanes.lane_of(masks, i), moved)))
        if panel is None:
            labels = *names, f"{names[1]}, matched"
            panel = through(losses, dict(zip(labels, (a, *ends.values()), strict=True)), points)
    assert panel is not None
    return Bend(panel, lines, barriers, overlaps)


def above_chord(alphas: np.ndarray, values: np.ndarray) -> float:
    """The barrier of one line, in the precision of its values."""
    return float(np.max(values - ((1 - alphas) * values[0] + alphas * values[-1])))
