"""What the studies of many seeds share: their flags, their optimizers, and what they measure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import cli, data, models
from recipes.common.data import Split
from recipes.common.errors import RecipeError

OPTIMIZERS = {"adam": optax.adam, "sgd": lambda rate: optax.sgd(rate, momentum=0.9)}
SCHEDULES = {"constant": optax.constant_schedule, "cosine": optax.cosine_decay_schedule}
EPOCHS = {"digits": 100, "mnist": 5, "cifar10": 20}
LOG_EVERY = {"mlp": 20, "lenet": 20, "conv": 5, "resnet20": 1}  # about a second on two cores
STATISTICS = ("recalibrate", "interpolate")

Measure = Callable[[Any], dict[str, jax.Array]]  # variables -> {"error", "loss"}: scalars


@dataclass(frozen=True)
class Study:
    """The flags of every study; each recipe adds its own."""

    dataset: Annotated[str, cli.choice(data.DATASETS)] = "digits"
    """What to learn; digits come with scikit-learn, the others are read from --data-dir."""
    data_dir: Annotated[Path | None, cli.default_is("DIR", "TFDS_DATA_DIR, of the environment")] = (
        None
    )
    """A TensorFlow Datasets folder."""
    train_examples: Annotated[int | None, cli.default_is("INT", "all")] = None
    """Train on only the first so many examples."""
    test_examples: Annotated[int | None, cli.default_is("INT", "all")] = None
    """Measure on only the first so many test examples."""
    model: Annotated[str, cli.choice(models.MODELS)] = "mlp"
    """The network; lenet is LeNet-300-100."""
    norm: Annotated[str, cli.choice(models.NORMS)] = "group"
    """Normalisation of the convolutional networks."""
    statistics: Annotated[str, cli.choice(STATISTICS)] = "recalibrate"
    """Running statistics between two networks of --norm batch: made anew, or interpolated."""

    seed: int = 0
    """The first seed; the others follow it."""
    epochs: Annotated[float | None, cli.default_is("FLOAT", "digits 100, mnist 5, cifar10 20")] = (
        None
    )
    """Passes over the data."""
    steps: Annotated[int | None, cli.default_is("INT", "those of --epochs")] = None
    """Training steps, instead of epochs."""
    batch_size: int = 128
    """Examples per step and network."""
    optimizer: Annotated[str, cli.choice(tuple(OPTIMIZERS))] = "adam"
    """The optimizer; sgd has momentum 0.9."""
    learning_rate: float = 1e-3
    """The learning rate at its highest."""
    schedule: Annotated[str, cli.choice(tuple(SCHEDULES))] = "constant"
    """The learning rate over time; cosine falls to zero."""
    points: int = 11
    """Networks along each path, both ends included: an odd number."""
    threshold: float = 2.0
    """Networks are connected if the error rises by less than so many percentage points."""


def check(config: Study) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    cli.one_of("--dataset", config.dataset, data.DATASETS)
    cli.one_of("--model", config.model, models.MODELS)
    cli.one_of("--norm", config.norm, models.NORMS)
    cli.one_of("--statistics", config.statistics, STATISTICS)
    cli.one_of("--optimizer", config.optimizer, tuple(OPTIMIZERS))
    cli.one_of("--schedule", config.schedule, tuple(SCHEDULES))
    cli.in_range("--learning-rate", config.learning_rate, 0, math.inf, "()")
    cli.in_range("--threshold", config.threshold, 0, 100, "(]")
    cli.in_range("--epochs", EPOCHS["digits"] if config.epochs is None else config.epochs, 0, 1e6)
    cli.at_least("--seed", config.seed, 0)
    cli.at_least("--batch-size", config.batch_size, 1)
    cli.at_least("--points", config.points, 3)
    if config.points % 2 == 0:
        raise RecipeError(
            f"--points must be odd, so that the middle is one of them; got {config.points}"
        )


def load(config: Study) -> data.Dataset:
    """The data; raises `RecipeError`."""
    dataset = data.load(config.dataset, config.data_dir, config.train_examples)
    most = len(dataset.test.labels)
    if config.test_examples is None:
        return dataset
    if not 1 <= config.test_examples <= most:
        raise RecipeError(f"--test-examples must be in [1, {most}], got {config.test_examples}")
    return dataset._replace(test=Split(*(part[: config.test_examples] for part in dataset.test)))


def steps_of(config: Study, examples: int, least: int = 2) -> int:
    """Training steps; raises `RecipeError` if there are less than `least`."""
    if config.batch_size > examples:
        raise RecipeError(
            f"--batch-size {config.batch_size} is more than all {examples:,} examples"
        )
    epochs = EPOCHS[config.dataset] if config.epochs is None else config.epochs
    steps = int(epochs * (examples // config.batch_size)) if config.steps is None else config.steps
    cli.at_least("--steps (or those of --epochs)", steps, least)
    return steps


def optimizer(config: Study, steps: int) -> optax.GradientTransformation:
    """The optimizer of every arm."""
    schedule, rate = SCHEDULES[config.schedule], config.learning_rate
    rates = schedule(rate) if config.schedule == "constant" else schedule(rate, steps)
    return OPTIMIZERS[config.optimizer](rates)


def rule(config: Study, module: nn.Module, images: np.ndarray) -> str | None:
    """How running statistics between two networks are made; None where there are none."""
    variables = jax.eval_shape(module.init, jax.random.key(0), images[:1])
    return config.statistics if "batch_stats" in variables else None


def measure_on(module: nn.Module, split: Split, batch_size: int = 1000) -> Measure:
    """A function from variables to their error and mean cross-entropy on all of `split`."""
    examples = len(split.labels)
    batch_size = min(batch_size, examples)
    padding = -examples % batch_size
    images = np.concatenate([split.images, np.zeros_like(split.images[:padding])])
    labels = np.concatenate([split.labels, np.full(padding, -1, np.int32)])  # -1: does not count
    images = images.reshape(-1, batch_size, *images.shape[1:])
    batches = jax.device_put((images, labels.reshape(-1, batch_size)))

    def measure(variables: Any) -> dict[str, jax.Array]:
        def sums(batch):
            images, labels = batch
            logits: Any = module.apply(variables, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
            wrong = jnp.argmax(logits, -1) != labels
            counts = labels >= 0
            return jnp.sum(wrong & counts), jnp.sum(jnp.where(counts, losses, 0.0))

        wrong, losses = jax.lax.map(sums, batches)
        return {"error": wrong.sum() / examples, "loss": losses.sum() / examples}

    return measure


def recalibrated(
    measure: Measure, module: nn.Module, train: Split, batch_size: int, examples: int = 2000
) -> Measure:
    """`measure` of networks whose running statistics are computed anew on training data."""
    batch_size = min(batch_size, len(train.labels))
    batches = max(1, min(examples, len(train.labels)) // batch_size)
    images = train.images[: batches * batch_size]
    stacked = jax.device_put(images.reshape(batches, batch_size, *images.shape[1:]))

    def update(variables, images):
        return module.apply(variables, images, train=True, mutable=["batch_stats"])[1]

    return lambda variables: measure(jp.recalibrate(update, variables, stacked))


def measure_of(config: Study, module: nn.Module, dataset: data.Dataset) -> Measure:
    """Test error and loss of a network between two others, by the rule that `config` asks for."""
    measure = measure_on(module, dataset.test)
    if rule(config, module, dataset.train.images) == "recalibrate":
        return recalibrated(measure, module, dataset.train, config.batch_size)
    return measure


def above_chord(values: np.ndarray) -> np.ndarray:
    """The barrier of each path: values (..., points) -> (...)."""
    v = np.asarray(values, np.float64)
    alphas = np.linspace(0, 1, v.shape[-1])
    return (v - (v[..., :1] + alphas * (v[..., -1:] - v[..., :1]))).max(-1)


def above_ends(values: np.ndarray) -> np.ndarray:
    """The instability of each path: values (..., points) -> (...)."""
    v = np.asarray(values, np.float64)
    return v.max(-1) - (v[..., 0] + v[..., -1]) / 2
