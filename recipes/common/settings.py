"""What every study asks on its command line, and what follows from the answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import optax

from recipes.common import cli, data, models
from recipes.common.folder import RecipeError

OPTIMIZERS = {"adam": optax.adam, "sgd": lambda rate: optax.sgd(rate, momentum=0.9)}
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": optax.cosine_decay_schedule,
    "drops": lambda rate, steps: optax.piecewise_constant_schedule(
        rate, {steps // 2: 0.1, 3 * steps // 4: 0.1}
    ),
}
EPOCHS = {"digits": 100, "mnist": 5, "cifar10": 20}
LOG_EVERY = {"mlp": 20, "lenet": 20, "conv": 5, "resnet20": 1}  # about a second on two cores


@dataclass(frozen=True)
class Settings:
    """What to train on what, for how long, and where to write; a study adds its own."""

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
    """Normalization of the convolutional networks."""

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
    """The learning rate over time; cosine falls to zero, drops to a tenth at 1/2 and at 3/4."""

    evaluations: int = 20
    """How often to measure test accuracy, evenly spread."""
    log_every: Annotated[int | None, cli.default_is("INT", "mlp, lenet 20, conv 5, resnet20 1")] = (
        None
    )
    """Steps between lines of metrics.jsonl."""
    out: Path = Path("runs/study")
    """The folder to write to."""
    overwrite: bool = False
    """Replace the run in --out."""
    resume: Annotated[
        bool,
        cli.words(
            "Go on with the run in --out, to the same bits: it was killed, or stopped by Ctrl-C "
            "(exit code 130) or SIGTERM (143)."
        ),
    ] = False
    allow_changes: Annotated[
        bool,
        cli.words(
            "With --resume: it may go on with other settings than it began with. What is trained "
            "and logged stays as it was; config.yaml tells what changed when."
        ),
    ] = False
    checkpoint_every: float = 60.0
    """Seconds between checkpoints: more than that no kill can undo. Ctrl-C undoes nothing."""
    keep_best: Annotated[
        bool,
        cli.words(
            "Keep a checkpoint of the best test accuracy in best/; of the sparsest states, means "
            "over arms with masks. Studies in phases have none."
        ),
    ] = False
    config: Annotated[Path | None, cli.default_is("FILE", "none")] = None
    """Read all of these from a config.yaml; flags given beside it win."""


MOST_SEEDS = 65_536  # far more than fit: XLA aborts the process where it finds no memory


class Plan(NamedTuple):
    """How to train: the same for all arms."""

    seed: int  # the first of
    seeds: int
    steps: int
    batch_size: int
    chunk_steps: int  # steps per call of the device, and per line of metrics.jsonl
    evaluations: int  # how often test accuracy is measured, evenly spread


def check(settings: Settings) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    cli.one_of("--dataset", settings.dataset, data.DATASETS)
    cli.one_of("--model", settings.model, models.MODELS)
    cli.one_of("--norm", settings.norm, models.NORMS)
    cli.one_of("--optimizer", settings.optimizer, tuple(OPTIMIZERS))
    cli.one_of("--schedule", settings.schedule, tuple(SCHEDULES))
    cli.in_range("--learning-rate", settings.learning_rate, 0, math.inf, "()")
    epochs = EPOCHS["digits"] if settings.epochs is None else settings.epochs
    cli.in_range("--epochs", epochs, 0, 1e6)
    cli.at_least("--seed", settings.seed, 0)
    if settings.seed + settings.seeds - 1 > cli.MOST:  # each has a number of its own
        raise RecipeError(
            f"--seed must be at most {cli.MOST - settings.seeds + 1:,} with --seeds "
            f"{settings.seeds}, got {settings.seed:,}"
        )
    cli.in_range("--checkpoint-every", settings.checkpoint_every, 0, math.inf)
    for flag in ("seeds", "batch_size", "evaluations", "log_every"):
        value = getattr(settings, flag)
        cli.at_least(f"--{flag.replace('_', '-')}", 1 if value is None else value, 1)
    if settings.seeds > MOST_SEEDS:
        raise RecipeError(f"--seeds must be at most {MOST_SEEDS:,}, got {settings.seeds:,}")


def plan_of(settings: Settings, examples: int) -> Plan:
    """What all arms share. At least 2 steps: one to train, one to prune."""
    if settings.batch_size > examples:
        raise RecipeError(
            f"--batch-size {settings.batch_size} is more than all {examples:,} examples"
        )
    epochs = EPOCHS[settings.dataset] if settings.epochs is None else settings.epochs
    in_epochs = int(epochs * (examples // settings.batch_size))
    steps = in_epochs if settings.steps is None else settings.steps
    cli.at_least("--steps (or those of --epochs)", steps, 2)
    return Plan(
        seed=settings.seed,
        seeds=settings.seeds,
        steps=steps,
        batch_size=settings.batch_size,
        chunk_steps=settings.log_every or LOG_EVERY[settings.model],
        evaluations=settings.evaluations,
    )


def optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """That of the dense arm, and inside the others."""
    return OPTIMIZERS[settings.optimizer](rates(settings, steps))


def rates(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate of every step of a training."""
    return SCHEDULES[settings.schedule](settings.learning_rate, steps)
