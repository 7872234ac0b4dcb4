"""Shared weights beside pruned ones, at equal sizes: `python -m recipes.sharing --help`.

A network of n weights stores n / c numbers. Random sharing makes all its weights of them; magnitude
pruning, gradually or at initialization, SNIP, SynFlow and GraSP keep that many weights; a small
dense network is so narrow that it has that many. The numbers of sharing need no place; the masks of
pruning have a bit for each weight, which the table counts apart. Writes a folder that reproduces
itself. Test data choose nothing: every number is measured at the last step.

Reference: Desai and Shrivastava, 2023, In Defense of Parameter Sharing for Model-Compression.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from recipes.common import cli, flags, lanes, models, settings, study
from recipes.common.arms import Arm, Learned, Weights
from recipes.common.data import Dataset, Key, Split, balanced_rows
from recipes.common.models import classification
from recipes.gmp import gradual
from recipes.prune_at_init import EXAMPLES, PER_CLASS, maker, masks_of
from recipes.random_erk import weights
from recipes.reports import sharing as report
from recipes.reports.sharing import name
from recipes.small_dense import bracket

AT_INIT = ("snip", "synflow", "grasp", "magnitude", "random")
METHODS = ("random_fold", "gmp", *AT_INIT, "small_dense")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Random sharing of weights beside pruning and smaller networks, at equal numbers stored."""

    out: Path = Path("runs/sharing")
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = (
        *("random_fold", "gmp", "snip", "synflow", "grasp", "small_dense"),
    )
    """One method, or several side by side."""
    compression: Annotated[tuple[float, ...], flags.within("(1, 10000]"), flags.DISTINCT] = (
        *(2.0, 10.0, 50.0, 100.0, 200.0),
    )
    """Weights of the dense network for each number that is stored."""
    seeds: settings.Seeds = 3
    """Seeds of each network, side by side."""
    every: flags.Count = 10
    """gmp: steps between updates of the masks."""
    rounds: Annotated[int, flags.at_least(1)] = 100
    """synflow: the number of pruning rounds."""


# --- the methods ----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """The dense arm, and one for each method and compression."""
    module = settings.module_of(config, dataset.classes)
    optimizer = settings.optimizer(config, steps)
    sparse = jp.sparsify(optimizer, jp.fixed(lanes.keep_all))  # each arm begins with its masks
    made = {"dense": Arm(module, optimizer)}
    for method in config.method:
        if method in AT_INIT:
            of_one = at_init(config, method, module, dataset, sparse)
        for times in config.compression:
            if method == "random_fold":
                arm = shared(config, module, optimizer, times)
            elif method == "gmp":
                pruned = gradual(optimizer, steps, 1 - 1 / times, config.every)
                arm = Arm(module, pruned, Weights.SPARSE)
            elif method == "small_dense":
                narrow = small(config, dataset, times)
                if narrow is None:
                    continue
                arm = Arm(narrow, optimizer)
            else:
                arm = of_one(times)
            made[name(method, times)] = arm
    return made


def shared(
    config: Config, module: nn.Module, optimizer: optax.GradientTransformation, times: float
) -> Arm:
    """All kernels are made of one array. Places and signs are the same for all seeds."""
    key = jax.random.fold_in(jax.random.key(config.seed), Key.METHOD)
    fold = jp.reparam.random_fold(key, times)
    cross_entropy = classification(module)

    def loss(learned: Any, batch_stats: Any, images: Any, labels: Any, step: Any, key: Any) -> Any:
        return cross_entropy(fold.apply(learned), batch_stats, images, labels)

    def all_shared(learned: Any) -> Any:
        none = jax.tree.map(lambda _: None, learned)
        return none._replace(shared=jnp.ones(learned.shared.shape, bool))

    tx = jp.sparsify(optimizer, jp.fixed(all_shared))  # it counts the steps
    in_tests = lambda learned, step: fold.apply(learned)
    return Arm(module, tx, learned=Learned(fold.init, loss, in_tests, lambda learned, step: {}))


def at_init(
    config: Config,
    method: str,
    module: nn.Module,
    dataset: Dataset,
    sparse: optax.GradientTransformation,
) -> Callable[[float], Arm]:
    """Compression -> the arm of a method that prunes first weights."""
    labels, classes = dataset.train.labels, dataset.classes
    of_each = PER_CLASS.get(method, EXAMPLES)
    rows = partial(balanced_rows, labels=labels, classes=classes, of_each=of_each)
    make = maker(masks_of(method, module, rows, config.rounds if method == "synflow" else None))
    data = jax.device_put(dataset.train)

    def start(times: float, keys: jax.Array, params: Any) -> tuple[Any, Any]:
        return params, make(keys, params, jnp.float32(1 - 1 / times), data)

    return lambda times: Arm(module, sparse, Weights.SPARSE, partial(start, times))


def small(config: Config, dataset: Dataset, times: float) -> nn.Module | None:
    """The widest network of at most that many weights; None where one neuron a layer has more."""
    batch = Split(*(x[:1] for x in dataset.train))
    of_width = partial(models.model, config.model, dataset.classes, config.norm)
    count = lambda width: weights(of_width(width), batch)
    most = count(config.width) / times
    low, _ = bracket(count, most, config.width)
    return of_width(low) if count(low) <= most else None


# --- the command ----------------------------------------------------------------------------------


def sharing(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    with warnings.catch_warnings():  # of empty layers: the table tells of them
        warnings.filterwarnings("ignore", ".*keeps none of its weights.*", UserWarning)
        outcome = study.train(config, partial(arms, config))
    return report.write(config, outcome)


main = cli.command(Config, sharing)

if __name__ == "__main__":
    main()
