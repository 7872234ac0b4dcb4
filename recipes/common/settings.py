"""The flags of every study, and the objects that they choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import flax.linen as nn
import optax

from recipes.common import data, flags, folder, models
from recipes.common.folder import RecipeError

OPTIMIZERS = {"adam": optax.adam, "sgd": lambda rate: optax.sgd(rate, momentum=0.9)}
SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda rate, steps: optax.constant_schedule(rate),
    "cosine": optax.cosine_decay_schedule,
    "drops": lambda rate, steps: optax.piecewise_constant_schedule(
        rate, {steps // 2: 0.1, 3 * steps // 4: 0.1}
    ),
}
EPOCHS = {"digits": 100, "mnist": 5, "cifar10": 20, "names": 3, "tiny_shakespeare": 1}
MOST_SEEDS = 65_536  # far more than fit: XLA aborts the process where it finds no memory
# about a second on two cores
LOG_EVERY = {"mlp": 20, "lenet": 20, "conv": 5, "resnet20": 1, "vit": 5}
Seeds = Annotated[int, flags.at_least(1, MOST_SEEDS)]


@dataclass(frozen=True)
class Run:
    """The folder that a recipe writes to, and the file that its flags may come from."""

    out: Path = Path("runs/study")
    """The folder to write to."""
    overwrite: bool = False
    """Replace the run in --out."""
    config: Annotated[Path | None, flags.default("no file")] = None
    """Read the flags from a config.yaml; flags on the command line win."""


@dataclass(frozen=True)
class Settings(Run):
    """The data, the network, the optimizer, the length of a training; a study adds its flags."""

    dataset: Annotated[str, flags.choice(data.DATASETS)] = "digits"
    """The data set. scikit-learn brings the digits; the others are read from --data-dir."""
    data_dir: Annotated[Path | None, flags.default("TFDS_DATA_DIR of the environment")] = None
    """A TensorFlow Datasets folder."""
    train_examples: Annotated[int | None, flags.default("all")] = None
    """Train on this many examples, the first ones."""
    model: Annotated[str, flags.choice(models.MODELS)] = "mlp"
    """The network; lenet is LeNet-300-100, vit a vision transformer."""
    norm: Annotated[str, flags.choice(models.NORMS)] = "group"
    """The normalization of convolutional networks."""
    width: Annotated[float, flags.within("(0, 100]")] = 1.0
    """A factor for the sizes of the hidden layers."""

    seeds: Seeds = 8
    """The number of seeds that train at once."""
    seed: Annotated[int, flags.at_least(0)] = 0
    """The first seed; the others follow it."""
    epochs: Annotated[
        float | None, flags.within("[0, 1000000]"), flags.default("digits 100, mnist 5, cifar10 20")
    ] = None
    """Passes over the data."""
    steps: Annotated[int | None, flags.default("the steps of --epochs")] = None
    """Training steps, in place of epochs."""
    batch_size: flags.Count = 128
    """Examples per step and seed."""
    optimizer: Annotated[str, flags.choice(OPTIMIZERS)] = "adam"
    """The optimizer; sgd has momentum 0.9."""
    learning_rate: flags.Positive = 1e-3
    """The highest learning rate."""
    schedule: Annotated[str, flags.choice(SCHEDULES)] = "constant"
    """The learning rate over time; cosine falls to zero, drops to a tenth at 1/2 and at 3/4."""

    evaluations: flags.Count = 20
    """How often test accuracy is measured, evenly spread."""
    log_every: Annotated[
        int | None, flags.at_least(1), flags.default("mlp, lenet 20, conv, vit 5, resnet20 1")
    ] = None
    """Steps in one call of the device. Lines of metrics.jsonl and Ctrl-C wait for its end; more
    steps are faster."""
    tensorboard: Annotated[Path | None, flags.default("no folder")] = None
    """Also write the numbers of metrics.jsonl as TensorBoard events to this folder."""
    resume: bool = False
    """Continue the run in --out, with equal results to the bit, after a kill, after Ctrl-C (exit
    code 130) or after SIGTERM (143)."""
    allow_changes: bool = False
    """With --resume: continue with other settings than the run began with. The steps that were
    trained stay; config.yaml lists each change and its step."""
    checkpoint_every: flags.NotNegative = 60.0
    """Seconds between checkpoints. A kill loses at most this much; Ctrl-C loses nothing."""
    keep_best: bool = False
    """Keep a checkpoint of the highest test accuracy in best/, among the sparsest states; a mean
    over the arms with masks. Studies in phases have none."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        if self.seed + self.seeds - 1 > flags.MOST:  # each seed is an int32
            yield (
                f"--seed must be at most {flags.MOST - self.seeds + 1:,} with --seeds "
                f"{self.seeds}, got {self.seed:,}"
            )
        if self.tensorboard and not find_spec("tensorboardX"):
            yield "--tensorboard needs a package: pip install 'jaxprune[tensorboard]'"


@dataclass(frozen=True)
class Shifted(Settings):
    """The flag of a study that also tests on data that are not like the training data."""

    shift: bool = False
    """At the end test on corrupted images too, and on attacked ones; tell how sure networks are."""


class Plan(NamedTuple):
    """The length of a training, the same for all arms."""

    seed: int  # the first
    seeds: int
    steps: int
    batch_size: int
    chunk_steps: int  # steps per call of the device, and per line of metrics.jsonl
    evaluations: int  # how often test accuracy is measured, evenly spread


def check_batch(batch_size: int, examples: int) -> None:
    """Raises `RecipeError` if a batch has more than all examples."""
    if batch_size > examples:
        raise RecipeError(f"--batch-size {batch_size} is more than all {examples:,} examples")


def plan_of(settings: Settings, examples: int) -> Plan:
    """The plan for so many examples. At least 2 steps: one to train, one to prune."""
    check_batch(settings.batch_size, examples)
    epochs = EPOCHS[settings.dataset] if settings.epochs is None else settings.epochs
    in_epochs = int(epochs * (examples // settings.batch_size))
    steps = in_epochs if settings.steps is None else settings.steps
    if steps < 2:
        raise RecipeError(f"--steps (or the steps of --epochs) must be at least 2, got {steps}")
    return Plan(
        seed=settings.seed,
        seeds=settings.seeds,
        steps=steps,
        batch_size=settings.batch_size,
        chunk_steps=settings.log_every or LOG_EVERY[settings.model],
        evaluations=settings.evaluations,
    )


def dataset_of(settings: Settings) -> data.Dataset:
    """The data; first raises `RecipeError` unless a run may be written to --out."""
    folder.check_out(settings.out, settings.overwrite, settings.resume)
    return data.load(settings.dataset, settings.data_dir, settings.train_examples)


def module_of(settings: Settings, classes: int) -> nn.Module:
    """The network."""
    return models.model(settings.model, classes, settings.norm, settings.width)


def optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
    """The optimizer of the dense arm, which the other arms wrap."""
    return OPTIMIZERS[settings.optimizer](rates(settings, steps))


def rates(settings: Settings, steps: int) -> optax.Schedule:
    """The learning rate of every step of a training."""
    return SCHEDULES[settings.schedule](settings.learning_rate, steps)
