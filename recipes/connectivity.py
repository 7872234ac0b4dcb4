"""Are these seeds in one basin: `python -m recipes.connectivity --help`.

Trains several seeds in one program, each twice, dense and pruned gradually to --sparsity, and then
walks in a straight line between every two of them: by how much does the test error rise. Beside it
the overlap of their masks, and a curve of low loss between the two seeds that are furthest apart.

Reference: Frankle et al., 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis;
Garipov et al., 2018, Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxprune as jp
from recipes.common import (
    cli,
    dead,
    flags,
    folder,
    lanes,
    measures,
    models,
    report,
    settings,
    study,
)
from recipes.common.arms import Arm, Weights
from recipes.common.data import Dataset, Key
from recipes.common.figures.pairs import Matrix, Paths, along_paths, heat_maps
from recipes.common.measures import PathSettings
from recipes.common.report import Picture, Writeup
from recipes.gmp import gradual

MATRICES, PATHS = "plots/matrices.png", "plots/paths.png"
LINE, CURVE = "furthest pair, straight", "furthest pair, curved"


@dataclass(frozen=True)
class Config(PathSettings):
    """Barriers between all pairs of seeds, dense and pruned, trained in one program."""

    out: Path = Path("runs/connectivity")
    seeds: Annotated[int, flags.at_least(2, settings.MOST_SEEDS)] = 8
    sparsity: flags.Fraction = 0.95
    """The fraction of weights that are pruned in the sparse twins."""
    every: flags.Count = 10
    """Steps between updates of the masks, from 10 % to 70 % of the steps."""
    curve_steps: Annotated[int, flags.at_least(0)] = 300
    """Steps to fit the curve between the two seeds that are furthest apart; 0 for no curve."""


class Pairs(NamedTuple):
    """Measurements between the seeds of one arm, of test error and test loss."""

    alphas: np.ndarray  # (points,)
    along: dict[str, np.ndarray]  # (seeds, seeds, points), from the earlier seed to the later
    barrier: dict[str, np.ndarray]  # (seeds, seeds): above the chord
    instability: dict[str, np.ndarray]  # (seeds, seeds): above the mean of the ends
    overlap: np.ndarray | None  # (seeds, seeds), of the masks
    furthest: tuple[int, int]  # the pair with the highest barrier of the error
    curve: np.ndarray | None  # error (points,) along the curve between these two
    seconds: float  # for the matrices


# --- what is trained ------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """Dense, and gradual magnitude pruning by a global threshold."""
    module = settings.module_of(config, dataset.classes)
    dense = settings.optimizer(config, steps)
    sparse = gradual(dense, steps, config.sparsity, config.every)
    return {"dense": Arm(module, dense), "sparse": Arm(module, sparse, Weights.SPARSE)}


# --- the command ----------------------------------------------------------------------------------


def connectivity(config: Config) -> dict[str, Any]:
    """Trains, compares, writes the folder `config.out`; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config))
    began = time.perf_counter()
    pairs = {arm: compare(config, outcome, arm) for arm in outcome.arms}
    summary = summarize(config, outcome, pairs, time.perf_counter() - began)
    study.save_model(config.out / folder.MODEL, outcome, "sparse")
    return report.finish(config, write_up(config, outcome, pairs, summary), summary)


def compare(config: Config, outcome: study.Outcome, arm: str) -> Pairs:
    """All pairs of the seeds of one arm."""
    module, state = outcome.arms[arm].module, outcome.states[arm]
    stack = {"params": state.params, "batch_stats": state.batch_stats}
    measures.check_finite(arm, stack)
    measure = measures.measure_of(config, module, outcome.dataset)
    began = time.perf_counter()
    path = partial(jp.analysis.loss_along, measure, points=config.points)
    along = jp.pairwise(lambda a, b: path(a, b)[1], stack, diagonal=0.0)
    along = jax.tree.map(np.asarray, along)
    seconds = time.perf_counter() - began

    alphas = np.linspace(0, 1, config.points)
    barrier = {name: measures.above_chord(values) for name, values in along.items()}
    instability = {name: measures.above_ends(values) for name, values in along.items()}
    first, second = np.unravel_index(np.argmax(barrier["error"]), barrier["error"].shape)
    furthest = (min(int(first), int(second)), max(int(first), int(second)))
    if furthest[0] == furthest[1]:  # no barrier anywhere
        furthest = (0, 1)
    sparse = outcome.arms[arm].weights is not Weights.DENSE
    masks = jp.get_masks(state.opt_state) if sparse else None
    curve = None
    if config.curve_steps:
        curve = bend(config, module, outcome.dataset, measure, stack, masks, furthest)
    overlap = np.asarray(jp.pairwise(jp.overlap, masks)) if sparse else None
    return Pairs(alphas, along, barrier, instability, overlap, furthest, curve, seconds)


def bend(
    config: Config,
    module: nn.Module,
    dataset: Dataset,
    measure: measures.Measure,
    stack: Any,
    masks: Any,
    pair: tuple[int, int],
) -> np.ndarray:
    """Error (points,) along a curve fitted between two seeds; pruned ones bend in both masks."""
    a, b = (lanes.lane_of(stack, i) for i in pair)
    train, loss_fn = jax.device_put(dataset.train), models.classification(module)

    def loss(variables, key):
        rows = jax.random.choice(key, len(train.labels), (config.batch_size,))
        batch = train.images[rows], train.labels[rows]
        return loss_fn(variables["params"], variables["batch_stats"], *batch)[0]

    if masks is not None:
        either = jax.tree.map(lambda mask: mask[pair[0]] | mask[pair[1]], masks)
        no_masks = jax.tree.map(lambda _: None, stack["batch_stats"])
        masks = {"params": either, "batch_stats": no_masks}
    key = jax.random.fold_in(jax.random.key(config.seed), Key.METHOD)
    optimizer = optax.adam(config.learning_rate)
    middle, _ = jp.analysis.fit_curve(key, loss, a, b, optimizer, config.curve_steps, masks)
    path = partial(jp.analysis.bezier, middle)
    return np.asarray(jp.analysis.loss_along(measure, a, b, config.points, path)[1]["error"])


def summarize(
    config: Config, outcome: study.Outcome, pairs: dict[str, Pairs], seconds: float
) -> dict[str, Any]:
    """The content of summary.json."""
    numbers = study.numbers(outcome)
    for arm, measured in pairs.items():
        error = measured.barrier["error"]
        at_chance = dead.at_chance(numbers["arms"][arm]["test_accuracy"])
        of_pairs = partial(measures.over_pairs, at_chance=at_chance)
        labels = np.asarray(jp.analysis.connected_components(error, config.threshold / 100))
        off = error[np.triu_indices(len(error), k=1)]
        overlap = None if measured.overlap is None else measures.over_pairs(measured.overlap)
        numbers["arms"][arm] |= {
            "error_barrier": of_pairs(error),
            "loss_barrier": of_pairs(measured.barrier["loss"]),
            "error_instability": of_pairs(measured.instability["error"]),
            "loss_instability": of_pairs(measured.instability["loss"]),
            "connected_pairs": None if at_chance else int((off < config.threshold / 100).sum()),
            "components": None if at_chance else labels.tolist(),
            "furthest_pair": list(measured.furthest),
            "error_on_the_line": measured.along["error"][measured.furthest].tolist(),
            "error_on_the_curve": None if measured.curve is None else measured.curve.tolist(),
            "mask_overlap": overlap,
            "matrix_seconds": round(measured.seconds, 2),
        }
    module, images = outcome.arms["dense"].module, outcome.dataset.train.images
    return report.summary(
        config,
        "error barriers between all pairs of seeds, dense and pruned",
        pairs=config.seeds * (config.seeds - 1) // 2,
        points=config.points,
        sparsity=config.sparsity,
        threshold_points=config.threshold,
        running_statistics=measures.rule(config, module, images),
        compare_seconds=round(seconds, 2),
        **numbers,
    )


def pictures(
    config: Config, pairs: dict[str, Pairs], summary: dict[str, Any]
) -> dict[str, Picture]:
    """The figures, by their path below the folder of the run."""
    errors = {arm: 100 * measured.barrier["error"] for arm, measured in pairs.items()}
    highest = max(error.max() for error in errors.values())  # one scale for both
    for arm in errors:
        if dead.at_chance(summary["arms"][arm]["test_accuracy"]):
            errors[arm] = np.full_like(errors[arm], np.nan)
    maps = {
        f"Error barrier (points), {arm}": Matrix(error, high=highest)
        for arm, error in errors.items()
    }
    if (overlap := pairs["sparse"].overlap) is not None:
        maps["Mask overlap, sparse"] = Matrix(overlap, "{:.2f}", high=1.0)
    panels = {arm.capitalize(): panel(measured) for arm, measured in pairs.items()}
    return {
        MATRICES: Picture(
            heat_maps(maps),
            "By how many points the test error rises above the chord between every two seeds "
            "(n/a with a seed at chance), and the intersection over union of their masks.",
        ),
        PATHS: Picture(
            along_paths(panels, config.threshold),
            "Test error from seed to seed. Each pair is a thin line; the curve is a quadratic "
            "Bezier with its middle trained.",
        ),
    }


def panel(measured: Pairs) -> Paths:
    """The paths of one arm, and the curve beside the line that it goes around."""
    upper = np.triu_indices(len(measured.along["error"]), k=1)
    others = {}
    if measured.curve is not None:
        others = {LINE: measured.along["error"][measured.furthest], CURVE: measured.curve}
    return Paths(measured.alphas, measured.along["error"][upper], others)


def write_up(
    config: Config, outcome: study.Outcome, pairs: dict[str, Pairs], summary: dict[str, Any]
) -> Writeup:
    """The result, for people."""
    arms = [summary["arms"][arm] for arm in ("dense", "sparse")]
    count = summary["pairs"]

    def row(name: str, say: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
        return name, *map(say, arms)

    def points(numbers: dict[str, Any]) -> str:
        said = report.plus_minus(numbers, 2, 100)
        return said if said == dead.NOT_MEASURED else f"{said} points"

    def unless_dead(value: Any, words: str) -> str:
        return dead.NOT_MEASURED if value is None else words

    def highest_on(path: str) -> Callable[[dict[str, Any]], str]:
        return lambda arm: f"{100 * max(arm[path]):.2f} %"

    rows = [
        row("test accuracy", lambda arm: report.percent(arm["test_accuracy"])),
        row("error barrier", lambda arm: points(arm["error_barrier"])),
        row("loss barrier", lambda arm: report.plus_minus(arm["loss_barrier"], 3)),
        row("error instability", lambda arm: points(arm["error_instability"])),
        row(
            f"pairs below {config.threshold:g} points",
            lambda arm: unless_dead(arm["components"], f"{arm['connected_pairs']} of {count}"),
        ),
        row(
            "groups of connected seeds",
            lambda arm: unless_dead(arm["components"], str(len(set(arm["components"] or ())))),
        ),
        ("mask overlap", "", report.plus_minus(arms[1]["mask_overlap"], 3)),
    ]
    if config.curve_steps:
        rows += [
            row("peak error, furthest pair", highest_on("error_on_the_line")),
            row("... on a curve between them", highest_on("error_on_the_curve")),
        ]
    seconds = [f"{arm['matrix_seconds']:.1f} s" for arm in arms]
    return Writeup(
        title="Linear mode connectivity",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} "
            f"steps, sparsity {100 * config.sparsity:g} %, {count} pairs x {config.points} points "
            f"on test data{measures.in_words(summary['running_statistics'])}: accuracy with "
            "standard deviation over seeds, the others with jackknife error over seeds"
        ),
        columns=("dense", "sparse"),
        rows=rows,
        notes=f"The matrices took {' and '.join(seconds)} beside the training",
        pictures=pictures(config, pairs, summary),
        layers={"sparse": study.layer_report(outcome, "sparse")},
        models=[folder.MODEL],
    )


main = cli.command(Config, connectivity)

if __name__ == "__main__":
    main()
