"""Gradual magnitude pruning beside dense training: `python -m recipes.gmp --help`.

Trains several seeds in one program, each twice: dense, and pruned gradually to --sparsity. Both
start from the same weights and see the same batches. Writes a folder that reproduces itself.

Reference: Zhu and Gupta, 2017, To prune, or not to prune.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxprune as jp
from recipes.common import checkpoint, cli, data, models, plots, results, run, training
from recipes.common.errors import RecipeError
from recipes.common.side_by_side import Folder, History, Plan, States, train_arms
from recipes.common.writeup import Writeup, to_markdown, to_terminal

PROGRAM = "python -m recipes.gmp"
CURVES, LAYERS = "plots/training.png", "plots/layers.png"
OPTIMIZERS = {"adam": optax.adam, "sgd": lambda rate: optax.sgd(rate, momentum=0.9)}
SCHEDULES = {"constant": optax.constant_schedule, "cosine": optax.cosine_decay_schedule}
ALLOCATIONS = {"global": jp.global_threshold, "erk": jp.erk, "uniform": jp.uniform}
PATTERNS = {"unstructured": jp.unstructured, "block4x4": jp.block(4, 4)}
EPOCHS = {"digits": 100, "mnist": 5, "cifar10": 20}
LOG_EVERY = {"mlp": 20, "lenet": 20, "conv": 5, "resnet20": 1}  # about a second on two cores


@dataclass(frozen=True)
class Config:
    """Gradual magnitude pruning beside dense training, several seeds in one program."""

    dataset: Annotated[str, cli.choice(data.DATASETS)] = "digits"
    """What to learn; digits come with scikit-learn, the others are read from --data-dir."""
    data_dir: Annotated[Path | None, cli.default_is("DIR", "TFDS_DATA_DIR, of the environment")] = (
        None
    )
    """A TensorFlow Datasets folder."""
    train_examples: Annotated[int | None, cli.default_is("INT", "all")] = None
    """Train on only the first so many examples."""
    model: Annotated[str, cli.choice(models.MODELS)] = "mlp"
    """The network; lenet is LeNet-300-100."""
    norm: Annotated[str, cli.choice(models.NORMS)] = "group"
    """Normalisation of the convolutional networks."""

    seeds: int = 8
    """How many seeds to train at once."""
    seed: int = 0
    """The first seed; the others follow it."""
    epochs: Annotated[float | None, cli.default_is("FLOAT", "digits 100, mnist 5, cifar10 20")] = (
        None
    )
    """Passes over the data."""
    steps: Annotated[int | None, cli.default_is("INT", "those of --epochs")] = None
    """Training steps, instead of epochs."""
    batch_size: int = 128
    """Examples per step and seed."""
    optimizer: Annotated[str, cli.choice(tuple(OPTIMIZERS))] = "adam"
    """The optimizer; sgd has momentum 0.9."""
    learning_rate: float = 1e-3
    """The learning rate at its highest."""
    schedule: Annotated[str, cli.choice(tuple(SCHEDULES))] = "constant"
    """The learning rate over time; cosine falls to zero."""

    sparsity: float = 0.95
    """The fraction of weights to prune, in [0, 1)."""
    allocation: Annotated[str, cli.choice(tuple(ALLOCATIONS))] = "global"
    """How much of each layer: one threshold for all, by shape (erk), or the same."""
    pattern: Annotated[str, cli.choice(tuple(PATTERNS))] = "unstructured"
    """What is pruned together in a layer."""
    begin: float = 0.1
    """When pruning begins, as a fraction of the steps."""
    end: float = 0.7
    """When the final sparsity is reached, as a fraction of the steps."""
    every: int = 10
    """Steps between updates of the masks."""

    evaluations: int = 20
    """How often to measure test accuracy, evenly spread."""
    log_every: Annotated[int | None, cli.default_is("INT", "mlp, lenet 20, conv 5, resnet20 1")] = (
        None
    )
    """Steps between lines of metrics.jsonl."""
    out: Path = Path("runs/gmp")
    """The folder to write to."""
    overwrite: bool = False
    """Replace the run in --out."""
    resume: bool = False
    """Go on with the run in --out that was stopped by Ctrl-C, with its config.yaml."""
    config: Annotated[Path | None, cli.default_is("FILE", "none")] = None
    """Read all of these from a config.yaml; flags given beside it win."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, gradual_magnitude_pruning, PROGRAM, argv)


def gradual_magnitude_pruning(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    check(config)
    run.check_out(config.out, config.overwrite, config.resume)
    dataset = data.load(config.dataset, config.data_dir, config.train_examples)
    module = models.model(config.model, dataset.classes, config.norm)
    plan = plan_of(config, len(dataset.train.labels))
    if not config.resume:
        run.start(config.out, cli.to_yaml(config))

    began = time.perf_counter()
    arms = optimizers(config, plan.steps)
    resume_command = f"{PROGRAM} --out {config.out} --resume"
    folder = Folder(config.out, config.resume, resume_command)
    states, history = train_arms(arms, module, dataset, plan, folder)
    summary = summarise(config, states, history, time.perf_counter() - began)

    writeup = write_up(config, summary, layer_report(module, dataset, states["sparse"]))
    save(config, states, history, summary, to_markdown(writeup))
    to_terminal(writeup)
    print(f"Everything is in {config.out}: see {config.out / run.REPORT}")
    return summary


def check(config: Config) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    cli.one_of("--dataset", config.dataset, data.DATASETS)
    cli.one_of("--model", config.model, models.MODELS)
    cli.one_of("--norm", config.norm, models.NORMS)
    cli.one_of("--optimizer", config.optimizer, tuple(OPTIMIZERS))
    cli.one_of("--schedule", config.schedule, tuple(SCHEDULES))
    cli.one_of("--allocation", config.allocation, tuple(ALLOCATIONS))
    cli.one_of("--pattern", config.pattern, tuple(PATTERNS))
    cli.in_range("--sparsity", config.sparsity, 0, 1, "[)")
    cli.in_range("--begin", config.begin, 0, 1, "[)")
    cli.in_range("--end", config.end, config.begin, 1, "(]")
    cli.in_range("--learning-rate", config.learning_rate, 0, math.inf, "()")
    cli.in_range("--epochs", EPOCHS["digits"] if config.epochs is None else config.epochs, 0, 1e6)
    cli.at_least("--seed", config.seed, 0)
    for flag in ("seeds", "batch_size", "every", "evaluations", "log_every"):
        value = getattr(config, flag)
        cli.at_least(f"--{flag.replace('_', '-')}", 1 if value is None else value, 1)


def plan_of(config: Config, examples: int) -> Plan:
    """What both arms share. At least 2 steps: one to train, one to prune."""
    if config.batch_size > examples:
        raise RecipeError(
            f"--batch-size {config.batch_size} is more than all {examples:,} examples"
        )
    epochs = EPOCHS[config.dataset] if config.epochs is None else config.epochs
    steps = int(epochs * (examples // config.batch_size)) if config.steps is None else config.steps
    cli.at_least("--steps (or those of --epochs)", steps, 2)
    return Plan(
        seed=config.seed,
        seeds=config.seeds,
        steps=steps,
        batch_size=config.batch_size,
        chunk_steps=config.log_every or LOG_EVERY[config.model],
        evaluations=config.evaluations,
    )


def pruning_steps(config: Config, steps: int) -> tuple[int, int]:
    """The first and the last step that may change the masks."""
    end = min(max(round(config.end * steps), 1), steps - 1)
    return min(round(config.begin * steps), end - 1), end


def optimizers(config: Config, steps: int) -> dict[str, optax.GradientTransformation]:
    """The whole difference between the two arms."""
    rate = config.learning_rate
    schedule = SCHEDULES[config.schedule]
    rates = schedule(rate) if config.schedule == "constant" else schedule(rate, steps)
    dense = OPTIMIZERS[config.optimizer](rates)
    begin, end = pruning_steps(config, steps)
    sparsity = optax.polynomial_schedule(
        0.0, config.sparsity, power=3, transition_steps=end - begin, transition_begin=begin
    )
    allocation, pattern = ALLOCATIONS[config.allocation], PATTERNS[config.pattern]
    gmp = jp.prune(jp.magnitude, allocation, sparsity, pattern=pattern)
    return {
        "dense": dense,
        "sparse": jp.sparsify(dense, jp.every(config.every, gmp, start=begin, stop=end)),
    }


def summarise(config: Config, states: States, history: History, seconds: float) -> dict[str, Any]:
    """The content of summary.json."""
    kept, weights = results.kept_weights(jp.get_masks(states["sparse"].opt_state))
    last = history[-1]
    return {
        "recipe": "gmp",
        "studies": "test accuracy after gradual magnitude pruning, beside dense training",
        "dataset": config.dataset,
        "model": config.model,
        "seeds": config.seeds,
        "steps": last["step"],
        "seconds": round(seconds, 2),
        "sparsity": float(np.mean((weights - kept) / weights)),
        "dense_accuracy": results.over_seeds(last["dense"]["test_accuracy"]),
        "sparse_accuracy": results.over_seeds(last["sparse"]["test_accuracy"]),
        "prunable_weights": weights,
        "kept_weights": kept.tolist(),
        "training_seconds": {arm: last[arm]["seconds"] for arm in states},
        "state_bytes": {arm: results.tree_bytes(state) for arm, state in states.items()},
        "peak_memory_bytes": results.peak_memory_bytes(),
        "environment": results.environment(),
    }


def save(
    config: Config, states: States, history: History, summary: dict[str, Any], report: str
) -> None:
    """Writes the model, the plots, summary.json and report.md."""
    sparse, out = states["sparse"], config.out
    masks = jp.get_masks(sparse.opt_state)
    checkpoint.save_model(out / run.MODEL, sparse.params, sparse.batch_stats, masks)
    accuracy = {arm: plots.curve(history, arm, "test_accuracy") for arm in states}
    sparsity = {"sparse": plots.curve(history, "sparse", "sparsity")}
    between = pruning_steps(config, summary["steps"])
    run.write(out / CURVES, plots.training_curves(accuracy, sparsity, between))
    run.write(out / LAYERS, plots.layer_density(results.layer_density(masks)))
    run.write_json(out / run.SUMMARY, summary)
    run.write(out / run.REPORT, report)
    run.remove(out / run.CHECKPOINT)


def layer_report(module: nn.Module, dataset: data.Dataset, state: training.TrainState) -> str:
    """`jp.report` of the first seed, as text."""
    first = jax.tree.map(lambda x: x[0], state)
    image = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), np.float32)

    def apply(params, images):
        return module.apply({"params": params, "batch_stats": first.batch_stats}, images)

    with warnings.catch_warnings():  # its text says the same
        warnings.simplefilter("ignore", UserWarning)
        return str(jp.report(first.params, jp.get_masks(first.opt_state), apply, image))


def write_up(config: Config, summary: dict[str, Any], layers: str) -> Writeup:
    """The result, for people."""
    dense, sparse = (results.percent(summary[f"{arm}_accuracy"]) for arm in ("dense", "sparse"))
    weights, kept = summary["prunable_weights"], summary["kept_weights"]
    few, many = min(kept), max(kept)
    seconds, size = summary["training_seconds"], summary["state_bytes"]
    wall, peak = summary["seconds"], summary["peak_memory_bytes"] / 1e9
    return Writeup(
        title="Gradual magnitude pruning",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} "
            "steps: mean ± standard deviation over seeds"
        ),
        columns=("dense", "sparse"),
        rows=(
            ("test accuracy", dense, sparse),
            ("sparsity", "0 %", f"{100 * summary['sparsity']:.7g} %"),
            ("weights kept", f"{weights:,}", f"{few:,}" if few == many else f"{few:,}-{many:,}"),
            ("training time", f"{seconds['dense']:.1f} s", f"{seconds['sparse']:.1f} s"),
            ("training state", f"{size['dense'] / 1e6:.1f} MB", f"{size['sparse'] / 1e6:.1f} MB"),
        ),
        footline=f"{wall:.0f} s with compilation and tests, peak memory {peak:.2f} GB",
        command=f"{PROGRAM} --config {config.out / run.CONFIG} --out NEW_FOLDER",
        pictures={
            CURVES: "Means over seeds; bands from the worst seed to the best. The masks change in "
            "the grey part.",
            LAYERS: "Weights kept in each layer: mean and standard deviation over seeds.",
        },
        layers=layers,
        environment=summary["environment"],
    )


if __name__ == "__main__":
    main()
