"""The loss between and around seeds, dense and pruned: `python -m recipes.landscape --help`.

Trains a few seeds in one program, each twice, dense and pruned gradually to --sparsity. Then it
draws the training loss on the plane through three seeds and on a filter-normalized plane around
the first, before and after one seed's neurons are matched to another's, and measures curvature:
the largest eigenvalues of the Hessian, its trace, and the density of its spectrum.

Reference: Li et al., 2018, Visualizing the Loss Landscape of Neural Nets; Ghorbani et al., 2019, An
Investigation into Neural Net Optimization via Hessian Eigenvalue Density; Ainsworth et al., 2023,
Git Re-Basin.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import (
    checkpoints,
    cli,
    data,
    flags,
    lanes,
    measures,
    models,
    settings,
    study,
    timing,
)
from recipes.common.arms import Arm, Weights
from recipes.common.figures.planes import Line, Mark, Panel, square
from recipes.common.folder import RecipeError
from recipes.common.lanes import lane_of
from recipes.common.measures import Losses, losses_on
from recipes.common.terminal import counted
from recipes.gmp import gradual
from recipes.reports import landscape as report

STARTS = 5  # of weight matching
# what is drawn after training, by the key of --seed
AROUND, ALIGNMENT, CURVATURE = data.Key.STUDY, data.Key.STUDY + 1, data.Key.STUDY + 2

Params = Any
Loss = Callable[[Params], jax.Array]


@dataclass(frozen=True)
class Config(settings.Settings):
    """Planes of the loss through and around seeds, and its curvature, dense and pruned."""

    out: Path = Path("runs/landscape")
    seeds: Annotated[int, flags.at_least(3, settings.MOST_SEEDS)] = 3
    """The number of seeds that train at once; the plane goes through the first three."""
    sparsity: flags.Fraction = 0.95
    """The fraction of weights that are pruned in the sparse twins."""
    masks: Annotated[Path | None, flags.default("gradual magnitude pruning")] = None
    """The folder of a saved run or model: the sparse twins train under its masks from their first
    weights, twin i under those of network i; --sparsity and --every are unused then."""
    every: flags.Count = 10
    """Steps between updates of the masks, from 10 % to 70 % of the steps."""

    examples: flags.Count = 1000
    """Measure on this many training examples, the first ones."""
    points: Annotated[int, flags.odd(3)] = 31
    """Points along each side of a plane, and along each line."""
    reach: flags.Positive = 1.0
    """How far the plane around a seed reaches, in lengths of its filters."""
    eigenvalues: flags.Count = 10
    """How many of the largest eigenvalues to find."""
    lanczos_steps: Annotated[int, flags.at_least("eigenvalues")] = 60
    """Hessian-vector products for the eigenvalues, and for each spectral density."""
    density_probes: flags.Count = 3
    """Random vectors for each spectral density."""
    trace_probes: Annotated[int, flags.at_least(2)] = 30
    """Random vectors for each trace."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if self.norm == "batch" and self.model not in ("mlp", "lenet"):
            yield (
                "--norm batch has running statistics, which describe no network beside the one "
                "that they were made in; choose --norm group"
            )


# --- what is trained ------------------------------------------------------------------------------


def arms(config: Config, dataset: data.Dataset, steps: int) -> dict[str, Arm]:
    """Dense, and gradual magnitude pruning by a global threshold or the masks of a folder.

    Raises `RecipeError` for more examples than there are, or more steps of Lanczos than weights,
    and for masks of other networks.
    """
    module = settings.module_of(config, dataset.classes)
    dense = settings.optimizer(config, steps)
    if config.masks:
        first = models.init(
            module, lanes.seed_keys(config.seed, config.seeds), dataset.train.images[:1]
        )
        masks = checkpoints.load_masks(config.masks, jax.vmap(lanes.keep_all)(first["params"]))
        fixed = jp.sparsify(dense, jp.fixed(lanes.keep_all))
        start = lambda keys, params: (params, masks)
        sparse = Arm(module, fixed, Weights.SPARSE, start)
        sparsity = float(jax.vmap(jp.sparsity)(masks).max())
    else:
        by_magnitude = gradual(dense, steps, config.sparsity, config.every)
        sparse, sparsity = Arm(module, by_magnitude, Weights.SPARSE), config.sparsity
    check_examples(config, module, dataset, sparsity)
    return {"dense": Arm(module, dense), "sparse": sparse}


def check_examples(
    config: Config, module: nn.Module, dataset: data.Dataset, sparsity: float
) -> None:
    """Raises `RecipeError` for more examples than there are, or more steps than kept weights."""
    most = len(dataset.train.labels)
    if config.examples > most:
        raise RecipeError(f"--examples {config.examples} is more than all {most:,} examples")
    shapes = jax.eval_shape(module.init, jax.random.key(0), dataset.train.images[:1])["params"]
    prunable = sum(leaf.size for leaf in jax.tree.leaves(jp.kernels(shapes)))
    every = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    kept = every - round(sparsity * prunable)
    if config.lanczos_steps > kept:
        raise RecipeError(
            f"--lanczos-steps {config.lanczos_steps} is more than the {kept:,} weights that "
            f"the sparsity {sparsity:g} keeps"
        )


# --- what is measured -----------------------------------------------------------------------------


class Measured(NamedTuple):
    """The measurements of one arm."""

    through: Panel
    around: Panel
    aligned: Aligned | None
    curved: Curved


def measure(config: Config, losses: Losses, outcome: study.Outcome) -> dict[str, Measured]:
    """Planes, alignment and curvature of each arm; no alignment where a norm ties neurons."""
    root = jax.random.key(config.seed)
    around_key, align_key, curve_key = (
        jax.random.fold_in(root, purpose) for purpose in (AROUND, ALIGNMENT, CURVATURE)
    )
    names = [f"seed {config.seed + i}" for i in range(3)]
    module, first = outcome.arms["dense"].module, lane_of(outcome.states["dense"].params, 0)
    fn = lambda params, images: module.apply({"params": params}, images)
    coupling = jp.analyze(fn, first, outcome.dataset.train.images[:1]).coupling()
    measured = {}
    with counted("measuring", 4 * len(outcome.arms)) as done:
        for arm, made in outcome.arms.items():
            state = outcome.states[arm]
            stack = state.params
            measures.check_finite(arm, stack)
            masks = None if made.weights is Weights.DENSE else jp.get_masks(state.opt_state)
            three = {name: lane_of(stack, i) for i, name in enumerate(names)}
            plane = through(losses, three, config.points)
            done(f"{arm}: plane through three seeds")
            first = names[0], lane_of(stack, 0), lane_of(masks, 0)
            beside = around(losses, *first, around_key, config.reach, config.points)
            done(f"{arm}: plane around the first")
            aligned = None
            if coupling:
                aligned = align(losses, stack, masks, coupling, align_key, config.points, names)
            done(f"{arm}: alignment")
            curved = curve(losses.loss, stack, masks, curve_key, config)
            done(f"{arm}: curvature")
            measured[arm] = Measured(plane, beside, aligned, curved)
    return measured


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


class Aligned(NamedTuple):
    """One arm before and after weight matching; lists are over pairs of seeds."""

    panel: Panel  # through the first seed, the second, and the second matched to the first
    lines: dict[str, Line]  # from the first seed to the second, training loss
    barriers: dict[str, dict[str, list[float]]]  # "before" and "after" -> "loss" and "error"
    overlaps: dict[str, list[float]]  # of the masks, "before" and "after"; {} without masks


def align(
    losses: Losses,
    stack: Params,
    masks: Any,
    coupling: jp.coupling.Coupling,
    key: jax.Array,
    points: int,
    names: Sequence[str],
) -> Aligned:
    """Every pair of seeds before and after the second's neurons are matched to the first's."""
    alphas = np.linspace(0, 1, points, dtype=np.float32)
    barriers: dict[str, dict[str, list[float]]] = {
        when: {"loss": [], "error": []} for when in ("before", "after")
    }
    overlaps: dict[str, list[float]] = {} if masks is None else {"before": [], "after": []}
    panel, lines, seeds = None, {}, len(jax.tree.leaves(stack)[0])
    for i, j in itertools.combinations(range(seeds), 2):
        a, b = lane_of(stack, i), lane_of(stack, j)
        pair_key = jax.random.fold_in(key, seeds * i + j)
        orders = jp.analysis.match_weights(pair_key, a, b, coupling, starts=STARTS)
        ends = {"before": b, "after": jp.analysis.permute(b, coupling, orders)}
        for when, end in ends.items():
            along = jp.analysis.line(losses.both, a, jax.tree.map(jnp.subtract, end, a), alphas)
            for name, values in along.items():
                barriers[when][name].append(above_chord(alphas, np.asarray(values)))
            if panel is None:
                label = {"before": "as trained", "after": "matched"}[when]
                lines[when] = Line(label, alphas, np.asarray(along["loss"]))
            if masks is not None:
                mask = lane_of(masks, j)
                moved = mask if when == "before" else jp.analysis.permute(mask, coupling, orders)
                overlaps[when].append(float(jp.overlap(lane_of(masks, i), moved)))
        if panel is None:
            labels = *names[:2], f"{names[1]}, matched"
            panel = through(losses, dict(zip(labels, (a, *ends.values()), strict=True)), points)
    assert panel is not None
    return Aligned(panel, lines, barriers, overlaps)


def above_chord(alphas: np.ndarray, values: np.ndarray) -> float:
    """The barrier of one line, in the precision of its values."""
    return float(np.max(values - ((1 - alphas) * values[0] + alphas * values[-1])))


class Curved(NamedTuple):
    """The Hessians of one arm; the first axis of every array is that of seeds."""

    eigenvalues: np.ndarray  # (seeds, k)
    errors: np.ndarray  # (seeds, k)
    trace: np.ndarray  # (seeds,)
    trace_error: np.ndarray  # (seeds,)
    nodes: np.ndarray  # (seeds, probes, steps)
    weights: np.ndarray  # (seeds, probes, steps)
    dimension: int  # weights that are kept


def curve(loss: Loss, stack: Params, masks: Any, key: jax.Array, config: Config) -> Curved:
    """Eigenvalues, trace and spectrum of every seed."""
    steps, rows, dimension = config.lanczos_steps, [], 0
    for i in range(len(jax.tree.leaves(stack)[0])):
        params, mask = lane_of(stack, i), lane_of(masks, i)
        keys = jax.random.split(jax.random.fold_in(key, i), 3)
        of = loss, params
        pairs = jp.analysis.hessian_eigenvalues(keys[0], *of, config.eigenvalues, steps, mask)
        trace = jp.analysis.hessian_trace(keys[1], *of, config.trace_probes, mask)
        spectrum = jp.analysis.hessian_spectrum(keys[2], *of, config.density_probes, steps, mask)
        dimension = int(spectrum.dimension)
        rows.append((pairs.values, pairs.errors, *trace, spectrum.nodes, spectrum.weights))
    columns = [np.stack(parts) for parts in zip(*rows, strict=True)]
    return Curved._make((*columns, dimension))


def product_time(loss: Loss, params: Params, rounds: int = 15) -> dict[str, float]:
    """Milliseconds of a gradient and of a Hessian-vector product, side by side; their ratio."""
    gradient = jax.jit(lambda loss, params: jax.grad(loss)(params))
    runs = {
        "gradient": lambda: jax.block_until_ready(gradient(loss, params)),
        "product": lambda: jax.block_until_ready(jp.analysis.hvp(loss, params, params)),
    }
    for run in runs.values():
        run()
    seconds = {name: np.asarray(own) for name, own in timing.interleaved(runs, rounds, 0).items()}
    return {
        "gradient_ms": round(1e3 * float(np.median(seconds["gradient"])), 3),
        "product_ms": round(1e3 * float(np.median(seconds["product"])), 3),
        "ratio": round(float(np.median(seconds["product"] / seconds["gradient"])), 3),
    }


# --- the command ----------------------------------------------------------------------------------


def landscape(config: Config) -> dict[str, Any]:
    """Trains, measures, writes the folder `config.out`; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config))
    began = time.perf_counter()
    losses = losses_on(outcome.arms["dense"].module, outcome.dataset.train, config.examples)
    measured = measure(config, losses, outcome)
    timed = product_time(losses.loss, lane_of(outcome.states["dense"].params, 0))
    return report.write(config, outcome, measured, timed, time.perf_counter() - began)


main = cli.command(Config, landscape)

if __name__ == "__main__":
    main()
