"""Are these seeds in one basin: `python -m recipes.connectivity --help`.

Trains several seeds in one program, each twice, dense and pruned gradually to --sparsity, and then
walks in a straight line between every two of them: by how much does the test error rise. Beside it
the overlap of their masks, and a curve of low loss between the two seeds that are furthest apart.

Reference: Frankle et al., 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis;
Garipov et al., 2018, Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import checkpoint, cli, heatmaps, models, results, run, study, training
from recipes.common.data import Dataset
from recipes.common.heatmaps import Matrix, Paths
from recipes.common.side_by_side import Folder, History, Plan, States, train_arms
from recipes.common.measures import PathSettings
from recipes.common.writeup import Writeup, to_markdown, to_terminal

PROGRAM = "python -m recipes.connectivity"
MATRICES, PATHS = "plots/matrices.png", "plots/paths.png"
LINE, CURVE = "furthest pair, straight", "furthest pair, curved"


@dataclass(frozen=True)
class Config(PathSettings):
    """Barriers between all pairs of seeds, dense and pruned, trained in one program."""

    seeds: int = 8
    """How many seeds to train at once, at least 2."""
    sparsity: float = 0.95
    """The fraction of weights to prune in the sparse twins, in [0, 1)."""
    every: int = 10
    """Steps between updates of the masks, from 10 % to 70 % of the steps."""
    curve_steps: int = 300
    """Steps to fit the curve between the two seeds that are furthest apart; 0 for none."""
    evaluations: int = 20
    """How often to measure test accuracy in training, evenly spread."""
    out: Path = Path("runs/connectivity")
    """The folder to write to."""
    overwrite: bool = False
    """Replace the run in --out."""
    resume: bool = False
    """Go on with the run in --out that was stopped by Ctrl-C, with its config.yaml."""
    config: Annotated[Path | None, cli.default_is("FILE", "none")] = None
    """Read all of these from a config.yaml; flags given beside it win."""


class Pairs(NamedTuple):
    """What is measured between the seeds of one arm, of test error and test loss."""

    alphas: np.ndarray  # (points,)
    along: dict[str, np.ndarray]  # (seeds, seeds, points), from the earlier seed to the later
    barrier: dict[str, np.ndarray]  # (seeds, seeds): above the chord
    instability: dict[str, np.ndarray]  # (seeds, seeds): above the mean of the ends
    overlap: np.ndarray | None  # (seeds, seeds), of the masks
    furthest: tuple[int, int]  # the pair with the highest barrier of the error
    curve: np.ndarray | None  # error (points,) along the curve between these two
    seconds: float  # for the matrices


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, connectivity, PROGRAM, argv)


def connectivity(config: Config) -> dict[str, Any]:
    """Trains, compares, writes the folder `config.out`; returns what summary.json holds."""
    check(config)
    run.check_out(config.out, config.overwrite, config.resume)
    dataset = study.load(config)
    module = models.model(config.model, dataset.classes, config.norm)
    plan = plan_of(config, len(dataset.train.labels))
    if not config.resume:
        run.start(config.out, cli.to_yaml(config))

    began = time.perf_counter()
    arms = optimizers(config, plan.steps)
    states, history = train(config, arms, module, dataset, plan)
    pairs = {arm: compare(config, module, dataset, state) for arm, state in states.items()}
    rule = measures.rule(config, module, dataset.train.images)
    summary = summarise(config, pairs, history, rule, time.perf_counter() - began)

    writeup = write_up(config, summary, layer_report(dataset, module, states["sparse"]))
    save(config, states, pairs, summary, to_markdown(writeup))
    to_terminal(writeup)
    print(f"Everything is in {config.out}: see {config.out / run.REPORT}")
    return summary


def check(config: Config) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    measures.check(config)
    cli.in_range("--sparsity", config.sparsity, 0, 1, "[)")
    cli.at_least("--seeds", config.seeds, 2)
    cli.at_least("--every", config.every, 1)
    cli.at_least("--evaluations", config.evaluations, 1)
    cli.at_least("--curve-steps", config.curve_steps, 0)


def plan_of(config: Config, examples: int) -> Plan:
    """What both arms share."""
    return Plan(
        seed=config.seed,
        seeds=config.seeds,
        steps=study.steps_of(config, examples),
        batch_size=config.batch_size,
        chunk_steps=study.LOG_EVERY[config.model],
        evaluations=config.evaluations,
    )


def optimizers(config: Config, steps: int) -> dict[str, optax.GradientTransformation]:
    """The whole difference between the two arms: gradual magnitude pruning, a global threshold."""
    dense = study.optimizer(config, steps)
    end = min(max(round(0.7 * steps), 1), steps - 1)
    begin = min(round(0.1 * steps), end - 1)
    sparsity = optax.polynomial_schedule(
        0.0, config.sparsity, power=3, transition_steps=end - begin, transition_begin=begin
    )
    gmp = jp.prune(jp.magnitude, jp.global_threshold, sparsity)
    return {
        "dense": dense,
        "sparse": jp.sparsify(dense, jp.every(config.every, gmp, start=begin, stop=end)),
    }


def train(
    config: Config,
    arms: dict[str, optax.GradientTransformation],
    module: nn.Module,
    dataset: Dataset,
    plan: Plan,
) -> tuple[States, History]:
    """Trains both arms; leaves a checkpoint of the last step, for a run that is stopped later."""
    path = config.out / run.CHECKPOINT
    if config.resume:
        keys = training.seed_keys(plan.seed, plan.seeds)
        image = dataset.train.images[:1]
        like = jax.eval_shape(
            lambda: {arm: training.init(module, tx, keys, image) for arm, tx in arms.items()}
        )
        step, states = checkpoint.load_checkpoint(path, like)
        if step == plan.steps:
            return states, run.read_lines(config.out / run.METRICS)
    folder = Folder(config.out, config.resume, f"{PROGRAM} --out {config.out} --resume")
    states, history = train_arms(arms, module, dataset, plan, folder)
    checkpoint.save_checkpoint(path, plan.steps, states)
    return states, history


def compare(config: Config, module: nn.Module, dataset: Dataset, state: Any) -> Pairs:
    """All pairs of the seeds in a stack of states."""
    stack = {"params": state.params, "batch_stats": state.batch_stats}
    measure = measures.measure_of(config, module, dataset)
    began = time.perf_counter()
    path = partial(jp.loss_along, measure, points=config.points)
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
    sparse = hasattr(state.opt_state, "mask_state")
    masks = jp.get_masks(state.opt_state) if sparse else None
    curve = None
    if config.curve_steps:
        curve = bend(config, module, dataset, measure, stack, masks, furthest)
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
    a, b = (jax.tree.map(lambda x, i=i: x[i], stack) for i in pair)
    train, loss_fn = jax.device_put(dataset.train), training.classification(module)

    def loss(variables, key):
        rows = jax.random.choice(key, len(train.labels), (config.batch_size,))
        batch = train.images[rows], train.labels[rows]
        return loss_fn(variables["params"], variables["batch_stats"], *batch)[0]

    if masks is not None:
        either = jax.tree.map(lambda mask: mask[pair[0]] | mask[pair[1]], masks)
        no_masks = jax.tree.map(lambda _: None, stack["batch_stats"])
        masks = {"params": either, "batch_stats": no_masks}
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    optimizer = optax.adam(config.learning_rate)
    middle, _ = jp.fit_curve(key, loss, a, b, optimizer, config.curve_steps, masks)
    path = partial(jp.bezier, middle)
    return np.asarray(jp.loss_along(measure, a, b, config.points, path)[1]["error"])


def over_pairs(matrix: np.ndarray) -> dict[str, Any]:
    """{mean, error, highest, matrix}; the error by the jackknife, None for two seeds."""
    off = matrix[np.triu_indices(len(matrix), k=1)]
    error = float(jp.jackknife(matrix).error) if len(matrix) > 2 else None
    return {
        "mean": float(off.mean()),
        "error": error,
        "highest": float(off.max()),
        "matrix": matrix.tolist(),
    }


def summarise(
    config: Config, pairs: dict[str, Pairs], history: History, rule: str | None, seconds: float
) -> dict[str, Any]:
    """The content of summary.json."""
    arms = {}
    for arm, measured in pairs.items():
        error = measured.barrier["error"]
        labels = np.asarray(jp.connected_components(error, config.threshold / 100))
        off = error[np.triu_indices(len(error), k=1)]
        arms[arm] = {
            "test_accuracy": results.over_seeds(history[-1][arm]["test_accuracy"]),
            "error_barrier": over_pairs(error),
            "loss_barrier": over_pairs(measured.barrier["loss"]),
            "error_instability": over_pairs(measured.instability["error"]),
            "loss_instability": over_pairs(measured.instability["loss"]),
            "connected_pairs": int((off < config.threshold / 100).sum()),
            "components": labels.tolist(),
            "furthest_pair": list(measured.furthest),
            "error_on_the_line": measured.along["error"][measured.furthest].tolist(),
            "error_on_the_curve": None if measured.curve is None else measured.curve.tolist(),
            "mask_overlap": None if measured.overlap is None else over_pairs(measured.overlap),
            "matrix_seconds": round(measured.seconds, 2),
        }
    return {
        "recipe": "connectivity",
        "studies": "error barriers between all pairs of seeds, dense and pruned",
        "dataset": config.dataset,
        "model": config.model,
        "seeds": config.seeds,
        "pairs": config.seeds * (config.seeds - 1) // 2,
        "points": config.points,
        "steps": history[-1]["step"],
        "sparsity": config.sparsity,
        "threshold_points": config.threshold,
        "running_statistics": rule,
        "seconds": round(seconds, 2),
        **arms,
        "peak_memory_bytes": results.peak_memory_bytes(),
        "environment": results.environment(),
    }


def save(
    config: Config, states: States, pairs: dict[str, Pairs], summary: dict[str, Any], report: str
) -> None:
    """Writes the model, the plots, summary.json and report.md."""
    sparse, out = states["sparse"], config.out
    masks = jp.get_masks(sparse.opt_state)
    checkpoint.save_model(out / run.MODEL, sparse.params, sparse.batch_stats, masks)
    errors = {arm: 100 * measured.barrier["error"] for arm, measured in pairs.items()}
    highest = max(error.max() for error in errors.values())  # one scale for both
    maps = {
        f"Error barrier (points), {arm}": Matrix(error, high=highest)
        for arm, error in errors.items()
    }
    if (overlap := pairs["sparse"].overlap) is not None:
        maps["Mask overlap, sparse"] = Matrix(overlap, "{:.2f}", high=1.0)
    run.write(out / MATRICES, heatmaps.heat_maps(maps))
    panels = {arm.capitalize(): panel(measured) for arm, measured in pairs.items()}
    run.write(out / PATHS, heatmaps.along_paths(panels, config.threshold))
    run.write_json(out / run.SUMMARY, summary)
    run.write(out / run.REPORT, report)
    run.remove(out / run.CHECKPOINT)


def panel(measured: Pairs) -> Paths:
    """The paths of one arm, and the curve beside the line that it goes around."""
    upper = np.triu_indices(len(measured.along["error"]), k=1)
    others = {}
    if measured.curve is not None:
        others = {LINE: measured.along["error"][measured.furthest], CURVE: measured.curve}
    return Paths(measured.alphas, measured.along["error"][upper], others)


def layer_report(dataset: Dataset, module: nn.Module, state: training.TrainState) -> str:
    """`jp.report` of the first seed, as text."""
    first = jax.tree.map(lambda x: x[0], state)
    image = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), jnp.float32)

    def apply(params, images):
        return module.apply({"params": params, "batch_stats": first.batch_stats}, images)

    with warnings.catch_warnings():  # its text says the same
        warnings.simplefilter("ignore", UserWarning)
        return str(jp.report(first.params, jp.get_masks(first.opt_state), apply, image))


def write_up(config: Config, summary: dict[str, Any], layers: str) -> Writeup:
    """The result, for people."""
    dense, sparse = summary["dense"], summary["sparse"]
    pairs, rule = summary["pairs"], summary["running_statistics"]

    def points(numbers: dict[str, Any]) -> str:
        error = "" if numbers["error"] is None else f" ± {100 * numbers['error']:.2f}"
        return f"{100 * numbers['mean']:.2f}{error} points"

    def plain(numbers: dict[str, Any]) -> str:
        error = "" if numbers["error"] is None else f" ± {numbers['error']:.3f}"
        return f"{numbers['mean']:.3f}{error}"

    def row(name: str, say: Any) -> tuple[str, str, str]:
        return name, say(dense), say(sparse)

    def highest_on(path: str) -> Any:
        return lambda arm: f"{100 * max(arm[path]):.2f} %"

    rows = [
        row("test accuracy", lambda arm: results.percent(arm["test_accuracy"])),
        row("error barrier", lambda arm: points(arm["error_barrier"])),
        row("loss barrier", lambda arm: plain(arm["loss_barrier"])),
        row("error instability", lambda arm: points(arm["error_instability"])),
        row(
            f"pairs below {config.threshold:g} points",
            lambda arm: f"{arm['connected_pairs']} of {pairs}",
        ),
        row("groups of connected seeds", lambda arm: str(len(set(arm["components"])))),
        ("mask overlap", "", plain(sparse["mask_overlap"])),
    ]
    if config.curve_steps:
        rows += [
            row("furthest pair: highest error on the line", highest_on("error_on_the_line")),
            row("... and on a curve fitted between them", highest_on("error_on_the_curve")),
        ]
    seconds = dense["matrix_seconds"], sparse["matrix_seconds"]
    peak = summary["peak_memory_bytes"] / 1e9
    statistics = f"; running statistics between them: {rule}" if rule else ""
    return Writeup(
        title="Linear mode connectivity",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} "
            f"steps, sparsity {100 * config.sparsity:g} %, {pairs} pairs x {config.points} points "
            f"on test data{statistics}: accuracy with standard deviation over seeds, the others "
            "with jackknife error over seeds"
        ),
        columns=("dense", "sparse"),
        rows=tuple(rows),
        footline=(
            f"{summary['seconds']:.0f} s in all, {seconds[0]:.1f} s and {seconds[1]:.1f} s for the "
            f"matrices, peak memory {peak:.2f} GB"
        ),
        command=f"{PROGRAM} --config {config.out / run.CONFIG} --out NEW_FOLDER",
        pictures={
            MATRICES: "By how many points the test error rises above the chord between every two "
            "seeds, and the intersection over union of their masks.",
            PATHS: "Test error from seed to seed. Each pair is a thin line; the curve is a "
            "quadratic Bezier with its middle trained.",
        },
        layers=layers,
        environment=summary["environment"],
    )


if __name__ == "__main__":
    main()
