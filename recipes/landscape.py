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

import io
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

import jaxprune as jp
from recipes.common import (
    cli,
    data,
    dead,
    flags,
    folder,
    measures,
    models,
    planes,
    report,
    settings,
    study,
)
from recipes.common.arms import Arm, Weights
from recipes.common.figures.planes import Panel, contours, curvature, planes_and_lines
from recipes.common.folder import RecipeError
from recipes.common.lanes import lane_of
from recipes.common.report import Writeup, finish
from recipes.common.terminal import progress
from recipes.gmp import gradual

SEEDS, AROUND, ALIGNED, CURVATURE = (
    f"plots/{name}.png" for name in ("seeds", "around", "alignment", "curvature")
)
ARRAYS = "plots/landscape.npz"
# what has dense layers only; group norm ties channels to their places
LAYERS = dict.fromkeys(("mlp", "lenet"), ("Dense_0", "Dense_1", "Dense_2"))


@dataclass(frozen=True)
class Config(settings.Settings):
    """Planes of the loss through and around seeds, and its curvature, dense and pruned."""

    out: Path = Path("runs/landscape")
    seeds: Annotated[int, flags.at_least(3, settings.MOST_SEEDS)] = 3
    """The number of seeds that train at once; the plane goes through the first three."""
    sparsity: Annotated[float, flags.within("[0, 1)")] = 0.95
    """The fraction of weights that are pruned in the sparse twins."""
    every: Annotated[int, flags.at_least(1)] = 10
    """Steps between updates of the masks, from 10 % to 70 % of the steps."""

    examples: Annotated[int, flags.at_least(1)] = 1000
    """Measure on this many training examples, the first ones."""
    points: Annotated[int, flags.odd(3)] = 31
    """Points along each side of a plane, and along each line."""
    reach: Annotated[float, flags.within("(0, inf)")] = 1.0
    """How far the plane around a seed reaches, in lengths of its filters."""
    eigenvalues: Annotated[int, flags.at_least(1)] = 10
    """How many of the largest eigenvalues to find."""
    lanczos_steps: Annotated[int, flags.at_least("eigenvalues")] = 60
    """Hessian-vector products for the eigenvalues, and for each spectral density."""
    density_probes: Annotated[int, flags.at_least(1)] = 3
    """Random vectors for each spectral density."""
    trace_probes: Annotated[int, flags.at_least(2)] = 30
    """Random vectors for each trace."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if self.norm == "batch" and self.model not in LAYERS:
            yield (
                "--norm batch has running statistics, which describe no network beside the one "
                "that they were made in; choose --norm group"
            )


class Measured(NamedTuple):
    """All that is measured of one arm."""

    through: Panel
    around: Panel
    bend: planes.Bend | None
    curved: planes.Curved


# --- what is trained ------------------------------------------------------------------------------


def arms(config: Config, dataset: data.Dataset, steps: int) -> dict[str, Arm]:
    """Dense, and gradual magnitude pruning by a global threshold.

    Raises `RecipeError` for more examples than there are, or more steps of Lanczos than weights.
    """
    module = models.model(config.model, dataset.classes, config.norm)
    check_examples(config, module, dataset)
    dense = settings.optimizer(config, steps)
    sparse = gradual(dense, steps, config.sparsity, config.every)
    return {"dense": Arm(module, dense), "sparse": Arm(module, sparse, Weights.SPARSE)}


# --- the command ----------------------------------------------------------------------------------


def landscape(config: Config) -> dict[str, Any]:
    """Trains, measures, writes the folder `config.out`; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config))
    began = time.perf_counter()
    losses = planes.losses_on(outcome.arms["dense"].module, outcome.dataset.train, config.examples)
    measured = measure(config, losses, outcome)
    timed = planes.product_time(losses.loss, lane_of(outcome.states["dense"].params, 0))
    summary = summarize(config, outcome, measured, timed, time.perf_counter() - began)
    save(config, outcome, measured, summary)
    return summary


# --- what is asked for ---------------------------------------------------------------------------


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


def measure(config: Config, losses: planes.Losses, outcome: study.Outcome) -> dict[str, Measured]:
    """Everything, arm by arm."""
    with progress("measuring", 4 * len(outcome.arms)) as show:
        done = itertools.count(1)
        measured = {}
        for name, arm in outcome.arms.items():
            state = outcome.states[name]
            stack = state.params
            measures.check_finite(name, stack)
            masks = None if arm.weights is Weights.DENSE else jp.get_masks(state.opt_state)
            names = [f"seed {config.seed + i}" for i in range(3)]
            three = {label: lane_of(stack, i) for i, label in enumerate(names)}
            through = planes.through(losses, three, config.points)
            show(next(done), f"{name}: plane through three seeds")
            first = names[0], lane_of(stack, 0), lane_of(masks, 0)
            around = planes.around(losses, *first, key_of(config, 3), config.reach, config.points)
            show(next(done), f"{name}: plane around the first")
            bend = None
            if layers := LAYERS.get(config.model):
                own = stack, masks, layers, key_of(config, 4)
                bend = planes.align(losses, *own, config.points, config.seed)
            show(next(done), f"{name}: alignment")
            curved = planes.curve(
                losses.loss,
                stack,
                masks,
                key_of(config, 5),
                config.eigenvalues,
                config.lanczos_steps,
                config.density_probes,
                config.trace_probes,
            )
            measured[name] = Measured(through, around, bend, curved)
            show(next(done), f"{name}: curvature")
    return measured


def key_of(config: Config, purpose: int) -> jax.Array:
    """A key for what is drawn after training."""
    return jax.random.fold_in(jax.random.key(config.seed), purpose)


# --- what is written -----------------------------------------------------------------------------


def summarize(
    config: Config,
    outcome: study.Outcome,
    measured: dict[str, Measured],
    timed: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """The content of summary.json."""
    summary = study.summarize(config, outcome)
    for arm, (_, _, bend, curved) in measured.items():
        own = summary["arms"][arm]
        own |= {
            "weights": curved.dimension,
            "largest_eigenvalue": report.over_seeds(curved.eigenvalues[:, 0]),
            "eigenvalues": curved.eigenvalues.tolist(),
            "eigenvalue_errors": curved.errors.tolist(),
            "trace": report.over_seeds(curved.trace),
            "trace_standard_errors": curved.trace_error.tolist(),
            "trace_per_weight": report.over_seeds(curved.trace / curved.dimension),
        }
        for when in ("before", "after") if bend is not None else ():
            assert bend is not None
            for name in ("loss", "error"):
                barriers = report.over_seeds(bend.barriers[when][name])
                own[f"{name}_barrier_{when}_matching"] = barriers
            if bend.overlaps:
                overlap = report.over_seeds(bend.overlaps[when])
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
    study.save_model(config.out / folder.MODEL, outcome, "sparse")
    label = "Training loss"
    through = {arm.capitalize(): own.through for arm, own in measured.items()}
    around = {arm.capitalize(): own.around for arm, own in measured.items()}
    axes = "First random direction", "Second random direction"
    figures = {
        SEEDS: contours(through, label, *2 * ["Distance in weight space"]),
        AROUND: contours(around, label, *axes),
    }
    bends = {arm.capitalize(): own.bend for arm, own in measured.items() if own.bend}
    if bends:
        panels = {title: bend.panel for title, bend in bends.items()}
        lines = {title: list(bend.lines.values()) for title, bend in bends.items()}
        figures[ALIGNED] = planes_and_lines(panels, label, lines, label)
    curved = {arm: own.curved for arm, own in measured.items()}
    figures[CURVATURE] = curvature(planes.densities(curved))
    folder.write(config.out / ARRAYS, arrays(measured))
    writeup = write_up(config, summary, study.layer_report(outcome, "sparse"))
    finish(config.out, writeup, summary, figures)


def arrays(arms: dict[str, Measured]) -> bytes:
    """The planes and the spectra as numbers (.npz), for other plots."""
    held: dict[str, Any] = {}
    for arm, own in arms.items():
        panels = {"seeds": own.through, "around": own.around}
        if own.bend is not None:
            panels["alignment"] = own.bend.panel
        for name, panel in panels.items():
            held |= {f"{arm}/{name}/{k}": getattr(panel, k) for k in ("xs", "ys", "losses")}
            held[f"{arm}/{name}/marks"] = np.array([mark[1:] for mark in panel.marks])
        held |= {f"{arm}/spectrum/{k}": getattr(own.curved, k) for k in ("nodes", "weights")}
    file = io.BytesIO()
    np.savez_compressed(file, **held)
    return file.getvalue()


def write_up(config: Config, summary: dict[str, Any], layers: str) -> Writeup:
    """The result, for people."""
    dense, sparse = summary["arms"]["dense"], summary["arms"]["sparse"]

    def number(numbers: dict[str, Any]) -> str:
        return f"{numbers['mean']:.3g} ± {numbers['std']:.2g}"

    def row(name: str, say: Callable[[dict], str]) -> tuple[str, str, str]:
        return name, say(dense), say(sparse)

    rows: list[Sequence[str]] = [
        row("test accuracy", lambda arm: report.percent(arm["test_accuracy"])),
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
                say = number if name == "loss" else report.percent
                own = [
                    dead.NOT_MEASURED if dead.at_chance(arm["test_accuracy"]) else say(arm[field])
                    for arm in (dense, sparse)
                ]
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
        command=cli.again(config),
        pictures=pictures,
        layers={"sparse": layers},
        models=[folder.MODEL],
        environment=summary["environment"],
    )


main = cli.command(Config, landscape)

if __name__ == "__main__":
    main()
