"""The loss between and around seeds, dense and pruned: `python -m recipes.landscape --help`.

Trains a few seeds in one program, each twice, dense and pruned gradually to --sparsity. Then it
draws the training loss on the plane through three seeds and on a filter-normalised plane around
the first, before and after one seed's neurons are matched to another's, and measures curvature:
the largest eigenvalues of the Hessian, its trace, and the density of its spectrum.

Reference: Li et al., 2018, Visualizing the Loss Landscape of Neural Nets; Ghorbani et al., 2019, An
Investigation into Neural Net Optimization via Hessian Eigenvalue Density; Ainsworth et al., 2023,
Git Re-Basin.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import (
    checkpoint,
    cli,
    contours,
    data,
    models,
    results,
    run,
    settings,
    spectra,
    study,
    timing,
)
from recipes.common.contours import Line, Mark, Panel
from recipes.common.errors import RecipeError
from recipes.common.progress import progress
from recipes.common.spectra import Curvature
from recipes.common.training import Arm, Weights
from recipes.common.writeup import Writeup, to_markdown, to_terminal

PROGRAM = "python -m recipes.landscape"
SEEDS, AROUND, ALIGNED, CURVATURE = (
    f"plots/{name}.png" for name in ("seeds", "around", "alignment", "curvature")
)
ARRAYS = "plots/landscape.npz"
# what has dense layers only; group norm ties channels to their places
LAYERS = dict.fromkeys(("mlp", "lenet"), ("Dense_0", "Dense_1", "Dense_2"))
STARTS = 5  # of weight matching

Params = Any
Measure = Callable[[Params], Any]  # params -> {"loss", "error"}, or the loss alone


@dataclass(frozen=True)
class Config(settings.Settings):
    """Planes of the loss through and around seeds, and its curvature, dense and pruned."""

    out: Path = Path("runs/landscape")
    """The folder to write to."""
    seeds: int = 3
    """How many seeds to train at once, at least 3: the plane goes through the first three."""
    sparsity: float = 0.95
    """The fraction of weights to prune in the sparse twins, in [0, 1)."""
    every: int = 10
    """Steps between updates of the masks, from 10 % to 70 % of the steps."""

    examples: int = 1000
    """Measure on so many of the training examples, the first ones."""
    points: int = 31
    """Points along each side of a plane, and along each line: an odd number."""
    reach: float = 1.0
    """How far the plane around a seed goes, in lengths of its filters."""
    eigenvalues: int = 10
    """How many of the largest eigenvalues to find."""
    lanczos_steps: int = 60
    """Hessian-vector products for the eigenvalues, and for each spectral density."""
    density_probes: int = 3
    """Random vectors for each spectral density."""
    trace_probes: int = 30
    """Random vectors for each trace."""


class Losses(NamedTuple):
    """The training loss as functions of the params, over batches that are on the device."""

    both: Measure  # {"loss", "error"}
    loss: Measure  # the loss alone: it has derivatives


class Bend(NamedTuple):
    """One arm before and after weight matching; lists are over pairs of seeds."""

    panel: Panel  # through the first seed, the second, and the second matched to the first
    lines: dict[str, Line]  # from the first seed to the second, training loss
    barriers: dict[str, dict[str, list[float]]]  # "before" and "after" -> "loss" and "error"
    overlaps: dict[str, list[float]]  # of the masks, "before" and "after"; {} without masks


class Curved(NamedTuple):
    """The Hessians of one arm; the first axis of every array is that of seeds."""

    eigenvalues: np.ndarray  # (seeds, k)
    errors: np.ndarray  # (seeds, k)
    trace: np.ndarray  # (seeds,)
    trace_error: np.ndarray  # (seeds,)
    nodes: np.ndarray  # (seeds, probes, steps)
    weights: np.ndarray  # (seeds, probes, steps)
    dimension: int  # weights that are kept


class Measured(NamedTuple):
    """All that is measured of one arm."""

    through: Panel
    around: Panel
    bend: Bend | None
    curved: Curved


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, landscape, PROGRAM, argv)


def landscape(config: Config) -> dict[str, Any]:
    """Trains, measures, writes the folder `config.out`; returns what summary.json holds."""
    check(config)
    outcome = study.train(config, PROGRAM, partial(arms, config))
    began = time.perf_counter()
    losses = losses_on(outcome.arms["dense"].module, outcome.dataset.train, config.examples)
    measured = measure(config, losses, outcome)
    timed = product_time(losses.loss, seed_of(outcome.states["dense"].params, 0))
    summary = summarise(config, outcome, measured, timed, time.perf_counter() - began)
    save(config, outcome, measured, summary)
    print(f"Everything is in {config.out}: see {config.out / run.REPORT}")
    return summary


# --- what is asked for ---------------------------------------------------------------------------


def check(config: Config) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    settings.check(config)
    cli.in_range("--sparsity", config.sparsity, 0, 1, "[)")
    cli.in_range("--reach", config.reach, 0, math.inf, "()")
    least = {"seeds": 3, "points": 3, "trace_probes": 2, "eigenvalues": 1, "density_probes": 1}
    for flag, low in (least | {"every": 1, "examples": 1}).items():
        cli.at_least(f"--{flag.replace('_', '-')}", getattr(config, flag), low)
    cli.at_least("--lanczos-steps", config.lanczos_steps, config.eigenvalues)
    if config.points % 2 == 0:
        raise RecipeError(
            f"--points must be odd, so that the middle is one of them; got {config.points}"
        )
    if config.norm == "batch" and config.model not in LAYERS:
        raise RecipeError(
            "--norm batch has running statistics, which describe no network beside the one that "
            "they were made in; choose --norm group"
        )


def arms(config: Config, dataset: data.Dataset, steps: int) -> dict[str, Arm]:
    """Dense, and gradual magnitude pruning by a global threshold.

    Raises `RecipeError` for more examples than there are, or more steps of Lanczos than weights.
    """
    module = models.model(config.model, dataset.classes, config.norm)
    check_examples(config, module, dataset)
    dense = settings.optimizer(config, steps)
    begin, end = settings.pruning_steps(0.1, 0.7, steps)
    sparsity = optax.polynomial_schedule(
        0.0, config.sparsity, power=3, transition_steps=end - begin, transition_begin=begin
    )
    gmp = jp.prune(jp.magnitude, jp.global_threshold, sparsity)
    sparse = jp.sparsify(dense, jp.every(config.every, gmp, start=begin, stop=end))
    return {
        "dense": Arm(module, lambda key: dense),
        "sparse": Arm(module, lambda key: sparse, Weights.SPARSE),
    }


def check_examples(config: Config, module: nn.Module, dataset: data.Dataset) -> None:
    """Raises `RecipeError` for more examples than there are, or more steps than kept weights."""
    most = len(dataset.train.labels)
    if config.examples > most:
        raise RecipeError(f"--examples {config.examples} is more than all {most:,} examples")
    shapes = jax.eval_shape(module.init, jax.random.key(0), dataset.train.images[:1])["params"]
    prunable = sum(leaf.size for leaf in jax.tree.leaves(jp.kernels(shapes)))
    every = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    kept = every - round(config.sparsity * prunable)
    if config.lanczos_steps > kept:
        raise RecipeError(
            f"--lanczos-steps {config.lanczos_steps} is more than the {kept:,} weights that "
            f"--sparsity {config.sparsity:g} keeps"
        )


# --- what is measured ----------------------------------------------------------------------------


def losses_on(module: nn.Module, split: data.Split, examples: int) -> Losses:
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

    return Losses(jp.over_batches(both, stacked), jp.over_batches(loss, stacked))


def measure(config: Config, losses: Losses, outcome: study.Outcome) -> dict[str, Measured]:
    """Everything, arm by arm."""
    with progress("measuring", 4 * len(outcome.arms)) as show:
        done = itertools.count(1)
        measured = {}
        for name, arm in outcome.arms.items():
            state = outcome.states[name]
            stack = state.params
            masks = None if arm.weights is Weights.DENSE else jp.get_masks(state.opt_state)
            through = plane_through_seeds(config, losses, stack)
            show(next(done), f"{name}: plane through three seeds")
            around = plane_around(config, losses, seed_of(stack, 0), seed_of(masks, 0))
            show(next(done), f"{name}: plane around the first")
            bend = align(config, losses, stack, masks) if config.model in LAYERS else None
            show(next(done), f"{name}: alignment")
            curved = curve(config, losses.loss, stack, masks)
            measured[name] = Measured(through, around, bend, curved)
            show(next(done), f"{name}: curvature")
    return measured


def seed_of(stack: Any, i: int) -> Any:
    """Seed i of a stack; None of None."""
    return jax.tree.map(lambda x: x[i], stack)


def key_of(config: Config, purpose: int) -> jax.Array:
    """A key for what is drawn after training."""
    return jax.random.fold_in(jax.random.key(config.seed), purpose)


def plane_through_seeds(config: Config, losses: Losses, stack: Params) -> Panel:
    """The training loss on the plane through the first three seeds."""
    three = {f"seed {config.seed + i}": seed_of(stack, i) for i in range(3)}
    return plane_of(config, losses, three)


def plane_of(config: Config, losses: Losses, three: dict[str, Params]) -> Panel:
    """The training loss on the plane through three models, by name."""
    frame = jp.plane_through(*three.values())
    where = {label: jp.coordinates(frame, params) for label, params in three.items()}
    marks = [Mark(label, float(at[0]), float(at[1])) for label, at in where.items()]
    xs, ys = contours.square(marks, config.points)
    return Panel(xs, ys, np.asarray(jp.plane(losses.both, *frame, xs, ys)["loss"]), marks)


def plane_around(config: Config, losses: Losses, params: Params, masks: Any) -> Panel:
    """The training loss on a random, filter-normalised plane around one seed."""
    x, y = (
        jp.random_direction(key, params, masks) for key in jax.random.split(key_of(config, 3), 2)
    )
    xs = np.linspace(-config.reach, config.reach, config.points, dtype=np.float32)
    values = jp.plane(losses.both, params, x, y, xs, xs)["loss"]
    return Panel(xs, xs, np.asarray(values), [Mark(f"seed {config.seed}", 0.0, 0.0)])


def align(config: Config, losses: Losses, stack: Params, masks: Any) -> Bend:
    """Every pair of seeds before and after the second's neurons are matched to the first's."""
    coupling = jp.sequential_coupling(seed_of(stack, 0), LAYERS[config.model])
    alphas = np.linspace(0, 1, config.points, dtype=np.float32)
    barriers: dict[str, dict[str, list[float]]] = {
        when: {"loss": [], "error": []} for when in ("before", "after")
    }
    overlaps: dict[str, list[float]] = {} if masks is None else {"before": [], "after": []}
    panel, lines = None, {}
    for i, j in itertools.combinations(range(config.seeds), 2):
        a, b = seed_of(stack, i), seed_of(stack, j)
        key = jax.random.fold_in(key_of(config, 4), config.seeds * i + j)
        orders = jp.match_weights(key, a, b, coupling, starts=STARTS)
        ends = {"before": b, "after": jp.permute(b, coupling, orders)}
        for when, end in ends.items():
            along = jp.line(losses.both, a, jax.tree.map(jnp.subtract, end, a), alphas)
            for name, values in along.items():
                barriers[when][name].append(above_chord(alphas, np.asarray(values)))
            if panel is None:
                label = {"before": "as trained", "after": "matched"}[when]
                lines[when] = Line(label, alphas, np.asarray(along["loss"]))
            if masks is not None:
                own = seed_of(masks, j)
                moved = own if when == "before" else jp.permute(own, coupling, orders)
                overlaps[when].append(float(jp.overlap(seed_of(masks, i), moved)))
        if panel is None:
            first, second = config.seed, config.seed + 1
            labels = f"seed {first}", f"seed {second}", f"seed {second}, matched"
            panel = plane_of(config, losses, dict(zip(labels, (a, *ends.values()), strict=True)))
    assert panel is not None
    return Bend(panel, lines, barriers, overlaps)


def above_chord(alphas: np.ndarray, values: np.ndarray) -> float:
    """The barrier: how far the values rise above the line between their ends."""
    return float(np.max(values - ((1 - alphas) * values[0] + alphas * values[-1])))


def curve(config: Config, loss: Measure, stack: Params, masks: Any) -> Curved:
    """Eigenvalues, trace and spectrum of every seed."""
    steps, found = config.lanczos_steps, []
    dimension = 0
    for i in range(config.seeds):
        params, own = seed_of(stack, i), seed_of(masks, i)
        keys = jax.random.split(jax.random.fold_in(key_of(config, 5), i), 3)
        pairs = jp.hessian_eigenvalues(keys[0], loss, params, config.eigenvalues, steps, own)
        trace = jp.hessian_trace(keys[1], loss, params, config.trace_probes, own)
        spectrum = jp.hessian_spectrum(keys[2], loss, params, config.density_probes, steps, own)
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


# --- what is written -----------------------------------------------------------------------------


def summarise(
    config: Config,
    outcome: study.Outcome,
    measured: dict[str, Measured],
    timed: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """The content of summary.json."""
    summary = study.summarise(config, outcome)
    for arm, (_, _, bend, curved) in measured.items():
        own = summary["arms"][arm]
        own |= {
            "weights": curved.dimension,
            "largest_eigenvalue": results.over_seeds(curved.eigenvalues[:, 0]),
            "eigenvalues": curved.eigenvalues.tolist(),
            "eigenvalue_errors": curved.errors.tolist(),
            "trace": results.over_seeds(curved.trace),
            "trace_standard_errors": curved.trace_error.tolist(),
            "trace_per_weight": results.over_seeds(curved.trace / curved.dimension),
        }
        for when in ("before", "after") if bend is not None else ():
            assert bend is not None
            for name in ("loss", "error"):
                barriers = results.over_seeds(bend.barriers[when][name])
                own[f"{name}_barrier_{when}_matching"] = barriers
            if bend.overlaps:
                overlap = results.over_seeds(bend.overlaps[when])
                own[f"mask_overlap_{when}_matching"] = overlap
    return {
        "recipe": "landscape",
        "studies": "the training loss between and around seeds, and its curvature",
        "examples": config.examples,
        "measuring_seconds": round(seconds, 2),
        "hessian_vector_product": timed,
        **summary,
    }


def save(
    config: Config, outcome: study.Outcome, measured: dict[str, Measured], summary: dict[str, Any]
) -> None:
    """Writes the model, the plots and what they show, summary.json and report.md; prints it."""
    sparse, out = outcome.states["sparse"], config.out
    masks = jp.get_masks(sparse.opt_state)
    checkpoint.save_model(out / run.MODEL, sparse.params, sparse.batch_stats, masks)
    label = "Training loss"
    through = {arm.capitalize(): own.through for arm, own in measured.items()}
    run.write(out / SEEDS, contours.planes(through, label, *2 * ["Distance in weight space"]))
    around = {arm.capitalize(): own.around for arm, own in measured.items()}
    axes = "First random direction", "Second random direction"
    run.write(out / AROUND, contours.planes(around, label, *axes))
    bends = {arm.capitalize(): own.bend for arm, own in measured.items() if own.bend}
    if bends:
        panels = {title: bend.panel for title, bend in bends.items()}
        lines = {title: list(bend.lines.values()) for title, bend in bends.items()}
        run.write(out / ALIGNED, contours.planes_and_lines(panels, label, lines, label))
    run.write(out / CURVATURE, spectra.curvature(densities(measured)))
    write_arrays(out / ARRAYS, measured)
    run.write_json(out / run.SUMMARY, summary)
    writeup = write_up(config, summary, study.layer_report(outcome, "sparse"))
    run.write(out / run.REPORT, to_markdown(writeup))
    run.remove(out / run.CHECKPOINT)
    to_terminal(writeup)


def densities(arms: dict[str, Measured]) -> dict[str, Curvature]:
    """The spectra on one grid, drawn with one width: a hundredth of their range."""
    nodes = [own.curved.nodes for own in arms.values()]
    low, high = min(x.min() for x in nodes), max(x.max() for x in nodes)
    width = (high - low) / 100
    grid = np.linspace(low - 4 * width, high + 4 * width, 600)
    drawn = {}
    for arm, own in arms.items():
        curved = own.curved
        density = [
            np.asarray(jp.spectral_density(jp.Spectrum(*rows, curved.dimension), grid, width))
            for rows in zip(curved.nodes, curved.weights, strict=True)
        ]
        drawn[arm] = Curvature(curved.eigenvalues, grid, np.stack(density))
    return drawn


def write_arrays(path: Path, arms: dict[str, Measured]) -> None:
    """The planes and the spectra as numbers, for other plots."""
    arrays: dict[str, Any] = {}
    for arm, own in arms.items():
        panels = {"seeds": own.through, "around": own.around}
        if own.bend is not None:
            panels["alignment"] = own.bend.panel
        for name, panel in panels.items():
            arrays |= {f"{arm}/{name}/{k}": getattr(panel, k) for k in ("xs", "ys", "losses")}
            arrays[f"{arm}/{name}/marks"] = np.array([mark[1:] for mark in panel.marks])
        arrays |= {f"{arm}/spectrum/{k}": getattr(own.curved, k) for k in ("nodes", "weights")}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def write_up(config: Config, summary: dict[str, Any], layers: str) -> Writeup:
    """The result, for people."""
    dense, sparse = summary["arms"]["dense"], summary["arms"]["sparse"]

    def number(numbers: dict[str, Any]) -> str:
        return f"{numbers['mean']:.3g} ± {numbers['std']:.2g}"

    def row(name: str, say: Callable[[dict], str]) -> tuple[str, str, str]:
        return name, say(dense), say(sparse)

    rows: list[Sequence[str]] = [
        row("test accuracy", lambda arm: results.percent(arm["test_accuracy"])),
        row("weights", lambda arm: f"{arm['weights']:,}"),
        row("largest eigenvalue", lambda arm: number(arm["largest_eigenvalue"])),
        row("trace", lambda arm: number(arm["trace"])),
        row("trace per weight", lambda arm: number(arm["trace_per_weight"])),
    ]
    pictures = {
        SEEDS: f"Training loss on the plane through seeds {config.seed} to {config.seed + 2}.",
        AROUND: f"Training loss around seed {config.seed}, along two random directions, each "
        "filter as long as the network's; directions of the sparse one live in its kept weights.",
    }
    if config.model in LAYERS:
        for name in ("loss", "error"):
            for when in ("before", "after"):
                field = f"{name}_barrier_{when}_matching"
                say = number if name == "loss" else results.percent
                own = [say(arm[field]) for arm in (dense, sparse)]
                rows.append((f"{name} barrier, {when} matching", *own))
        for when in ("before", "after"):
            overlap = number(sparse[f"mask_overlap_{when}_matching"])
            rows.append((f"mask overlap, {when} matching", "", overlap))
        pictures[ALIGNED] = (
            f"Training loss on the plane through seed {config.seed}, seed {config.seed + 1}, and "
            "the latter with its neurons matched to the former's; below, on the lines from the "
            "one to the other."
        )
    pictures[CURVATURE] = (
        "The Hessian of the training loss over the kept weights: its largest eigenvalues (mean "
        "and standard deviation over seeds), and the density of all of them."
    )
    timed, peak = summary["hessian_vector_product"], summary["peak_memory_bytes"] / 1e9
    return Writeup(
        title="The loss landscape",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} "
            f"steps, sparsity {100 * config.sparsity:g} %, measured on {config.examples:,} "
            "training examples: mean ± standard deviation over seeds (barriers and overlaps: over "
            "pairs of seeds)"
        ),
        columns=("dense", "sparse"),
        rows=tuple(rows),
        footline=(
            f"{summary['seconds']:.0f} s of training and {summary['measuring_seconds']:.0f} s of "
            f"measuring with compilation, peak memory {peak:.2f} GB; a "
            f"Hessian-vector product takes {timed['ratio']:.2f} gradients "
            f"({timed['product_ms']:.1f} ms)"
        ),
        command=f"{PROGRAM} --config {config.out / run.CONFIG} --out NEW_FOLDER",
        pictures=pictures,
        layers={"sparse": layers},
        models=[run.MODEL],
        environment=summary["environment"],
    )


if __name__ == "__main__":
    main()
