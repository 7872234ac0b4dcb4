"""The intrinsic dimension of a task: `python -m recipes.intrinsic --help`.

How many numbers does a network need to learn? It trains in random subspaces of d dimensions, from
its first weights, and beside it trains as usual. d_int90 is the smallest d that reaches 90 % of the
accuracy of the usual training. All d run one program: masks choose the first d coordinates. A
network is then d numbers and a seed, which compressed.npz shows. Writes a folder that reproduces
itself. Test data choose nothing: every number is measured at the last step.

Reference: Li et al., 2018, Measuring the Intrinsic Dimension of Objective Landscapes.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.reparam import Point
from recipes.common import checkpoints, data, flags, folder, lanes, measures, models, settings
from recipes.common.cli import command
from recipes.common.data import Key
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Network, State
from recipes.common.models import classification
from recipes.reports import intrinsic as report

COMPRESSED = "compressed.npz"


@dataclass(frozen=True)
class Config(settings.Settings):
    """Accuracy in random subspaces of d dimensions, several seeds in one program."""

    out: Path = Path("runs/intrinsic")
    model: Annotated[str, flags.choice(models.MODELS)] = "lenet"
    """The network; lenet is LeNet-300-100, vit a vision transformer."""
    dims: Annotated[tuple[int, ...], flags.at_least(1), flags.DISTINCT] = (
        *(10, 20, 50, 100, 200, 500, 1000, 2000),
    )
    """The dimensions of the subspaces."""
    share: Annotated[float, flags.within("(0, 1]")] = 0.9
    """Of the accuracy of plain training; d_int is the smallest d that reaches it."""
    seeds: settings.Seeds = 3
    """Seeds of each network, side by side."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested at the end of a training

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if self.norm == "batch" and self.model in ("conv", "resnet20"):
            yield "--norm batch has running statistics, which no subspace holds: use --norm group"


class Lane(NamedTuple):
    """A network, and the subspace that it trains in."""

    order: jax.Array  # keys (lanes,)
    rates: jax.Array  # (lanes, steps)
    decay: jax.Array  # (lanes,): none
    directions: jax.Array  # keys (lanes,): of the subspace
    first: Any  # the first weights; with the keys, a function of the seeds


class Study(NamedTuple):
    """The values that all phases share."""

    config: Config
    dataset: data.Dataset
    module: Any
    test: measures.Accuracy
    steps: int
    chunk: int

    @property
    def keys(self) -> jax.Array:
        """A key for each seed."""
        return lanes.seed_keys(self.config.seed, self.config.seeds)

    def program(self, optimizer: Any, loss: Any = None) -> lanes.Program:
        """A program of this network and these data."""
        how = self.dataset.train, self.config.batch_size, self.chunk, loss
        return lanes.program(self.module, optimizer, *how)


# --- the method -----------------------------------------------------------------------------------


def subspace(study: Study) -> lanes.Program:
    """Training of coordinates, under masks of the first d of them."""
    config = study.config
    cross_entropy = classification(study.module)

    def loss(point: jax.Array, state: State, images: Any, labels: Any, lane: Lane) -> Any:
        params = network(lane.directions, point, lane.first)
        return cross_entropy(params, state.batch_stats, images, labels)

    every = jp.fixed(lambda point: jnp.ones(point.shape, bool))  # each d begins with its masks
    optimizer = settings.OPTIMIZERS[config.optimizer]
    return study.program(lambda lane: jp.sparsify(lanes.by_rates(optimizer, lane), every), loss)


def network(key: jax.Array, point: jax.Array, first: Any) -> Any:
    """The params at a point of the subspace of a key."""
    return jp.reparam.random_subspace(key, len(point)).apply(Point(first, point))


networks = jax.jit(jax.vmap(network))


def lane_of(study: Study, first: Any, d: int) -> Lane:
    """Seeds side by side; with Adam each step moves the params as far as one of plain training."""
    keys = study.keys
    longer = math.sqrt(size_of(first) / d) if study.config.optimizer == "adam" else 1.0
    rates = longer * lanes.table(settings.rates(study.config, study.steps), study.steps)
    directions = data.folded(keys, Key.METHOD)
    return Lane(*lanes.alike(keys, rates), directions, first)


def size_of(stack: Any) -> int:
    """The number of params of one network of a stack."""
    return sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(stack))


# --- the phases -----------------------------------------------------------------------------------


class Found(NamedTuple):
    """What phases hand on."""

    first: Network  # before any training
    points: jax.Array  # (dims, seeds, highest d): where training ended in each subspace


def one_run(study: Study, kept: Journal, p: Any, i: int, found: Found) -> tuple[Found, dict]:
    """Trains the networks as usual; later in subspaces of one number of dimensions."""
    config, first = study.config, found.first
    if i == 0:
        tx = jp.sparsify(settings.optimizer(config, study.steps), jp.fixed(lanes.keep_all))
        plain, order = study.program(lambda lane: tx), lanes.Lane(study.keys)
        trained = lanes.trained(kept, "dense", plain, first, order, study.steps)
        return found, {"d": None, **told(study, kept, "dense", trained)}

    d, highest = config.dims[i - 1], max(config.dims)
    masks = jnp.tile(jnp.arange(highest) < d, (config.seeds, 1))
    start = Network(jnp.zeros(masks.shape), first.batch_stats, masks)
    lane = lane_of(study, first.params, d)
    trained = lanes.trained(kept, f"d {d}", p, start, lane, study.steps)
    params = networks(lane.directions, trained.params, first.params)
    used = Network(params, trained.batch_stats, first.masks)
    found = found._replace(points=found.points.at[i - 1].set(trained.params))
    return found, {"d": d, **told(study, kept, f"d-{d}", used)}


def told(study: Study, kept: Journal, name: str, trained: Network) -> dict[str, Any]:
    """Saves the networks; their accuracies."""
    path = study.config.out / folder.MODEL / name
    folder.remove(path)  # of a run that was stopped
    checkpoints.save_model(path, *trained)
    return {"seconds": kept.seconds(), "test_accuracy": study.test(trained.variables).tolist()}


def compressed(study: Study, points: np.ndarray, d: int) -> bytes:
    """A file of the networks of all seeds: d numbers each, and the first seed.

    They lie among the first d of all directions, whose number the file has too.
    """
    file, highest = io.BytesIO(), max(study.config.dims)
    np.savez(file, seed=np.int64(study.config.seed), of=np.int64(highest), points=points[:, :d])
    return file.getvalue()


def decompressed(study: Study, file: Path) -> Any:
    """The params (seeds, ...) that a file of `compressed` says."""
    held = np.load(file)
    keys = lanes.seed_keys(int(held["seed"]), len(held["points"]))
    first = lanes.initial(subspace(study), keys).params
    rest = int(held["of"]) - held["points"].shape[1]
    points = np.pad(held["points"], ((0, 0), (0, rest)))
    return networks(data.folded(keys, Key.METHOD), jnp.asarray(points), first)


def study_of(config: Config) -> Study:
    """The data, the network and the length of a run."""
    dataset = settings.dataset_of(config)
    plan = settings.plan_of(config, len(dataset.train.labels))
    module = settings.module_of(config, dataset.classes)
    test = measures.accuracy(module, dataset.test)
    return Study(config, dataset, module, test, plan.steps, plan.chunk_steps)


def intrinsic(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`; returns what summary.json holds."""
    study, began = study_of(config), time.perf_counter()
    p = subspace(study)
    params = size_of(lanes.shapes(p, 1))
    if max(config.dims) > params:
        raise folder.RecipeError(
            f"--dims has {max(config.dims):,}, and the network only {params:,} params"
        )
    with journal(config) as kept:
        first = lanes.initial(p, study.keys)
        points = jnp.zeros((len(config.dims), config.seeds, max(config.dims)))
        phase = partial(one_run, study, kept, p)
        found = lanes.phases(kept, 1 + len(config.dims), Found(first, points), phase)
    summary = report.summary(study, kept.records, params, time.perf_counter() - began)
    d = summary["compressed"]["d"]
    points_of_d = np.asarray(found.points[config.dims.index(d)])
    folder.write(config.out / COMPRESSED, compressed(study, points_of_d, d))
    return report.publish(study, summary)


main = command(Config, intrinsic)

if __name__ == "__main__":
    main()
