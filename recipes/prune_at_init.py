"""Pruning at initialization, methods side by side: `python -m recipes.prune_at_init --help`.

Each method makes its masks of the first weights, before any training, at one sparsity or several;
then all train alike, from the same weights and on the same batches. With --controls each method has
two controls: its masks shuffled within layers, and other weights under its masks. Writes a folder
that reproduces itself. Test data choose nothing: every number is measured at the last step.

References: Lee et al., 2019 (SNIP); Wang et al., 2020 (GraSP); Tanaka et al., 2020 (SynFlow);
de Jorge et al., 2021 (FORCE, iterative SNIP); Liu et al., 2022 (random, ERK); Farahani, 2024
(random search); Frankle et al., 2021, Pruning Neural Networks at Initialization: Why Are We Missing
the Mark? (the controls).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import cli, flags, lanes, report, settings, study
from recipes.common.arms import Arm, ArmKey, Weights
from recipes.common.data import Dataset, Split, balanced_rows
from recipes.common.models import LossFn, classification
from recipes.reports.prune_at_init import (
    REDRAWN,
    SHUFFLED,
    Kind,
    add_collapse,
    highest,
    kinds,
    name,
    pictures_of,
)

METHODS = ("snip", "grasp", "synflow", "force", "iter_snip", "magnitude", "random", "random_search")
ROUNDS = {"synflow": 100, "force": 60, "iter_snip": 60}
PER_CLASS = {"grasp": 25}  # examples of each class, as its authors take
EXAMPLES = 10  # of each class, for the other methods
TEMPERATURE = 200  # of GraSP

Forward = Callable[[Any], jax.Array]
MasksOf = Callable[[jax.Array, Any, Any, Split], Any]  # (key, params, sparsity, data) -> masks


@dataclass(frozen=True)
class Config(settings.Settings):
    """Pruning at initialization, methods side by side, several seeds in one program."""

    out: Path = Path("runs/prune_at_init")
    seeds: settings.Seeds = 5
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = (
        "snip",
        "synflow",
        "random",
    )
    """One method, or several side by side."""
    sparsity: Annotated[tuple[float, ...], flags.within("[0, 1)"), flags.DISTINCT] = (0.98,)
    """The fraction of weights that are pruned, or several fractions."""
    controls: bool = False
    """Beside each method its masks shuffled within layers, and redrawn weights under its masks."""
    rounds: Annotated[
        int | None, flags.at_least(1), flags.default("synflow 100; force, iter_snip 60")
    ] = None
    """synflow, force, iter_snip: the number of pruning rounds."""
    per_class: Annotated[
        int | None,
        flags.at_least(1),
        flags.default("grasp 25, as in its authors' code; the others 10"),
    ] = None
    """snip, grasp, force, iter_snip, random_search: training examples of each class that a seed's
    masks see."""
    candidates: flags.Count = 100
    """random_search: the number of random masks, of which the one with the lowest loss trains."""


# --- the methods ----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """The dense arm, and one for each kind; these train alike, in one compiled program."""
    module = settings.module_of(config, dataset.classes)
    dense = settings.optimizer(config, steps)
    sparse = jp.sparsify(dense, jp.fixed(lanes.keep_all))  # each arm begins with its masks
    data = jax.device_put(dataset.train)
    labels, classes = dataset.train.labels, dataset.classes
    make = {}
    for method in config.method:
        of_each = config.per_class or PER_CLASS.get(method, EXAMPLES)
        rows = partial(balanced_rows, labels=labels, classes=classes, of_each=of_each)
        make[method] = maker(masks_of(method, module, rows, config.rounds, config.candidates))
    draw = redraw(module, dataset.train.images)

    def start(kind: Kind, keys: jax.Array, params: Any) -> tuple[Any, Any]:
        masks = make[kind.method](keys, params, jnp.float32(kind.sparsity), data)
        if kind.control == SHUFFLED:
            masks = _shuffled(keys, masks)
        if kind.control == REDRAWN:
            params = draw(keys, masks)
        return params, masks

    return {"dense": Arm(module, dense)} | {
        name(kind, config): Arm(module, sparse, Weights.SPARSE, partial(start, kind))
        for kind in kinds(config)
    }


def masks_of(
    method: str,
    module: nn.Module,
    rows: Callable[[jax.Array], jax.Array],
    rounds: int | None = None,
    candidates: int = 1,
) -> MasksOf:
    """One of `METHODS`, as a function of one seed; `rows` draws the examples that it sees.

    One threshold chooses the weights of all layers; random masks keep as many as `erk` says.
    """
    rounds = ROUNDS.get(method, 1) if rounds is None else rounds

    def masks(key: jax.Array, params: Any, sparsity: Any, data: Split) -> Any:
        drawn = rows(key)
        seen = Split(data.images[drawn], data.labels[drawn])
        loss = loss_on(classification(module), seen)
        match method:
            case "synflow":
                forward = flow(module, data.images.shape[1:])
                return jp.at_init.synflow(forward, params, sparsity, rounds)
            case "force":
                return jp.at_init.force(loss, params, sparsity, rounds)
            case "iter_snip":
                return jp.at_init.iter_snip(loss, params, sparsity, rounds)
            case "random":
                return jp.select(jp.random(key)(jp.kernels(params)), jp.erk, sparsity)
            case "random_search":
                return jp.at_init.random_search(key, loss, params, sparsity, candidates)
            case "magnitude":
                scores = jp.magnitude(jp.kernels(params))
            case "snip":
                scores = jp.at_init.snip(loss, params)
            case "grasp":
                scores = jp.at_init.grasp(
                    loss_on(classification(module, TEMPERATURE), seen), params
                )
        return jp.select(scores, jp.global_threshold, sparsity)

    return masks


def loss_on(loss_fn: LossFn, batch: Split) -> Callable[[Any], jax.Array]:
    """The loss of first weights on a batch: there are no running statistics yet."""
    return lambda params: loss_fn(params, {}, *map(jnp.asarray, batch))[0]


@cache
def flow(module: nn.Module, shape: tuple[int, ...]) -> Forward:
    """The function that SynFlow differentiates: params -> outputs for ones, without the norms.

    Group norm divides by its input, and batch norm by statistics of data: both would break the
    conservation of flow. Their scales are 1 at first.
    """

    def forward(params: Any) -> jax.Array:
        with nn.intercept_methods(_without_norms):
            logits: Any = module.apply({"params": params}, jnp.ones((1, *shape)))
        return logits

    return forward


def _without_norms(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if isinstance(context.module, (nn.GroupNorm, nn.BatchNorm)):
        return args[0]
    return call(*args, **kwargs)


def maker(masks: MasksOf) -> Callable[[jax.Array, Any, jax.Array, Split], Any]:
    """The masks of a stack of seeds; one program serves all sparsities."""
    return jax.jit(jax.vmap(masks, in_axes=(0, 0, None, None)))


def redraw(module: nn.Module, images: np.ndarray) -> Callable[[jax.Array, Any], Any]:
    """New weights for each seed, under its masks."""
    init = lambda key: module.init(key, jnp.asarray(images[:1]))["params"]

    def of_one(key: jax.Array, masks: Any) -> Any:
        return jp.tickets.reinitialize(jax.random.fold_in(key, ArmKey.REDRAWN), init, masks)

    return jax.jit(jax.vmap(of_one))


@jax.jit
@jax.vmap
def _shuffled(key: jax.Array, masks: Any) -> Any:
    return jp.tickets.shuffle(jax.random.fold_in(key, ArmKey.SHUFFLED), masks)


# --- the command ----------------------------------------------------------------------------------


def prune_at_init(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    with warnings.catch_warnings():  # of empty layers: the table tells of them
        warnings.filterwarnings("ignore", ".*keeps none of its weights.*", UserWarning)
        outcome = study.train(config, partial(arms, config))
    summary = report.summary(
        config,
        "test accuracy of networks pruned at initialization, beside dense training",
        methods=list(config.method),
        sparsities=list(config.sparsity),
        controls=config.controls,
        **study.numbers(outcome),
    )
    module, image = outcome.arms["dense"].module, outcome.dataset.train.images.shape[1:]
    add_collapse(config, outcome, summary["arms"], flow(module, image))
    pictures = pictures_of(config, outcome, summary["arms"])
    told = [name(kind, config) for kind in highest(config)]
    return study.publish(config, outcome, summary, "Pruning at initialization", pictures, told)


main = cli.command(Config, prune_at_init)

if __name__ == "__main__":
    main()
