"""The few inputs that matter, by sparse autoencoders: `python -m recipes.select_features --help`.

Trains denoising autoencoders, sparse by SET or dense, and ranks the inputs by the strength of their
weights (QuickSelection); beside them the inputs of the highest variance, and random ones. Trees
that see the chosen inputs alone tell the classes. The picture shows which pixels were chosen.
Writes a folder that reproduces itself.

Reference: Atashgahi et al., 2022, Quick and Robust Feature Selection: the Strength of
Energy-efficient Sparse Training for Autoencoders.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.ensemble import ExtraTreesClassifier

import jaxprune as jp
from recipes.common import (
    arms,
    checkpoints,
    cli,
    data,
    dead,
    flags,
    folder,
    lanes,
    report,
    settings,
)
from recipes.common.arms import ArmKey
from recipes.common.figures import images
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal
from recipes.common.lanes import State
from recipes.common.report import Picture, Writeup

METHODS = ("set", "dense", "variance", "random")
CHOSEN = "plots/chosen.png"
TREES = 50


@dataclass(frozen=True)
class Config(settings.Settings):
    """The inputs with the strongest weights in sparse autoencoders, several seeds at once."""

    out: Path = Path("runs/select_features")
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = METHODS
    """What ranks the inputs: their strength in an autoencoder that is sparse (set) or dense, their
    variance, or chance."""
    features: flags.Count = 20
    """The number of inputs to choose."""
    hidden: flags.Count = 200
    """The neurons between encoder and decoder."""
    sparsity: flags.Fraction = 0.9
    """set: the fraction of weights that are pruned, from the first step on."""
    every: Annotated[int | None, flags.at_least(1), flags.default("an epoch")] = None
    """set: steps between updates of the masks."""
    fraction: Annotated[float, flags.within("[0, 1]")] = 0.2
    """set: the fraction of kept weights that an update rewires."""
    noise: flags.NotNegative = 0.2
    """The standard deviation of the noise on the inputs, which are normalized."""
    tree_examples: flags.Count = 10_000
    """Training examples that the trees see, the first ones."""
    seeds: settings.Seeds = 3
    """Seeds that train at once, in one program."""
    model: Annotated[str, flags.HIDDEN] = "mlp"
    norm: Annotated[str, flags.HIDDEN] = "group"
    width: Annotated[float, flags.HIDDEN] = 1.0
    evaluations: Annotated[int, flags.HIDDEN] = 1  # inputs are chosen at the end of a training


class Study(NamedTuple):
    """The values that all methods share."""

    config: Config
    dataset: data.Dataset
    plan: settings.Plan

    @property
    def inputs(self) -> int:
        return self.dataset.train.images[0].size


# --- the method -----------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """Sigmoid neurons, and a linear decoder."""

    hidden: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.reshape(len(images), -1)
        z = nn.sigmoid(nn.Dense(self.hidden, name="encoder")(x))
        return nn.Dense(x.shape[-1], name="decoder")(z).reshape(images.shape)


def program(study: Study, method: str) -> lanes.Program:
    """Training of autoencoders: the mask transform is the only difference."""
    config, (train, *_), plan = study.config, study.dataset, study.plan
    optimizer = settings.optimizer(config, plan.steps)
    n = config.every or len(train.labels) // config.batch_size
    module: Any = Autoencoder(config.hidden)

    def by_lane(lane: arms.Seeds) -> Any:
        rewired = jp.set(lane.own, config.sparsity, config.fraction, jp.er)
        # the last masks have at least n steps of training
        masks = jp.every(n, rewired, start=n, stop=max(plan.steps - n, n))
        return jp.sparsify(optimizer, masks if method == "set" else jp.fixed(lanes.keep_all))

    def loss(params: Any, state: State, images: Any, labels: Any, lane: arms.Seeds) -> Any:
        key = jax.random.fold_in(lane.own, ArmKey.LEARNED)
        key = jax.random.fold_in(key, state.opt_state.step)
        noisy = images + config.noise * jax.random.normal(key, images.shape)
        error = jnp.mean((module.apply({"params": params}, noisy) - images) ** 2)
        return error, (error, state.batch_stats)

    return lanes.program(module, by_lane, train, plan.batch_size, plan.chunk_steps, loss)


def strengths(study: Study, kept: Journal, method: str) -> jax.Array:
    """What each seed ranks the inputs by (seeds, inputs)."""
    config, keys = study.config, lanes.seed_keys(study.config.seed, study.config.seeds)
    lane = arms.seeds_of(keys)
    if method == "random":
        return jax.vmap(lambda key: jax.random.uniform(key, (study.inputs,)))(lane.own)
    if method == "variance":
        flat = study.dataset.train.images.reshape(-1, study.inputs)
        return jnp.tile(flat.var(0), (config.seeds, 1))
    p = program(study, method)
    state = lanes.begin(p, lanes.initial(p, keys)._replace(masks=None), lane)
    train = lambda state, done, at: lanes.train(p, state, lane, study.plan.steps, at, done)
    network = kept.once(method, study.plan.steps, state, train, f"{config.seeds} networks").network
    path = config.out / model_of(method)
    folder.remove(path)  # of a run that was stopped
    checkpoints.save_model(path, *network)
    return jax.vmap(jp.analysis.input_strength)(network.params["encoder"]["kernel"])


def model_of(method: str) -> str:
    """The path of a method's autoencoders, below the folder of the run."""
    return f"{folder.MODEL}/{method}-autoencoder"


def largest(strength: jax.Array, n: int) -> np.ndarray:
    """The n inputs of the highest strength, the highest first: (seeds, n)."""
    return np.asarray(jax.lax.top_k(strength, n)[1])


def told_apart(study: Study, features: np.ndarray, seed: int) -> float:
    """The test accuracy of trees that see these features (n,)."""
    (train, test), config = study.dataset[:2], study.config
    trees = ExtraTreesClassifier(TREES, random_state=seed)
    flat = lambda images: images.reshape(len(images), -1)[:, features]
    n = config.tree_examples
    trees.fit(flat(train.images[:n]), train.labels[:n])
    return float(np.mean(trees.predict(flat(test.images)) == test.labels))


# --- the phases -----------------------------------------------------------------------------------


class Ranked(NamedTuple):
    """The state between methods: what those so far rank by, (methods, seeds, inputs)."""

    by: jax.Array


def one_method(
    study: Study, kept: Journal, i: int, ranked: Ranked
) -> tuple[Ranked, dict[str, Any]]:
    """Ranks the inputs by a method, and tests the highest."""
    config, method = study.config, study.config.method[i]
    strength = strengths(study, kept, method)
    chosen = largest(strength, config.features)
    accuracy = [told_apart(study, features, config.seed + s) for s, features in enumerate(chosen)]
    record = {"method": method, "step": kept.step, "seconds": kept.seconds()}
    record |= {"test_accuracy": accuracy, "features": chosen.tolist()}
    return Ranked(ranked.by.at[i].set(strength)), record


def select_features(config: Config) -> dict[str, Any]:
    """Trains, chooses, writes the folder `config.out`; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    study = Study(config, dataset, settings.plan_of(config, len(dataset.train.labels)))
    if config.features > study.inputs:
        raise RecipeError(f"--features {config.features} is more than all {study.inputs:,} inputs")
    began = time.perf_counter()
    with journal(config) as kept:
        none = Ranked(jnp.zeros((len(config.method), config.seeds, study.inputs)))
        ranked = lanes.phases(kept, len(config.method), none, partial(one_method, study, kept))
    seconds = time.perf_counter() - began
    chance = dead.chance(dataset.test.labels)
    summary = report.summary(
        config,
        "test accuracy of trees that see a few inputs, chosen by autoencoders",
        steps=study.plan.steps,
        features=config.features,
        inputs=study.inputs,
        chance=chance,
        arms={
            record["method"]: {
                "test_accuracy": report.accuracy(record["test_accuracy"], chance),
                "features": record["features"],
            }
            for record in kept.records
        },
        seconds=round(seconds, 2),
    )
    return report.finish(config, write_up(study, summary, np.asarray(ranked.by)), summary)


def write_up(study: Study, summary: dict[str, Any], ranked: np.ndarray) -> Writeup:
    """The result, for people: a row for each method."""
    config, shape = study.config, study.dataset.train.images.shape[1:]
    as_image = lambda x: x.reshape(shape).sum(-1)
    seen = {}
    for method, strength in zip(config.method, ranked, strict=True):
        mask = np.zeros(study.inputs)
        mask[summary["arms"][method]["features"][0]] = 1
        seen[method] = as_image(strength[0]), as_image(mask) > 0
    return Writeup(
        title="Features by the strength of their weights",
        headline=(
            f"{config.dataset}, {config.seeds} seeds, autoencoders of {config.hidden} neurons, "
            f"{study.plan.steps:,} steps: test accuracy of {TREES} trees that see "
            f"{config.features} of {study.inputs:,} inputs"
        ),
        columns=["test accuracy"],
        rows=[
            (method, report.percent(numbers["test_accuracy"]))
            for method, numbers in summary["arms"].items()
        ],
        pictures={
            CHOSEN: Picture(
                images.chosen(seen),
                "What the first seed ranks its inputs by, light where it is much, and the inputs "
                "that it chooses, as points.",
            )
        },
        layers={},
        models=[model_of(method) for method in config.method if method in ("set", "dense")],
    )


main = cli.command(Config, select_features)

if __name__ == "__main__":
    main()
