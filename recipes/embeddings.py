"""Embeddings of fewer dimensions and fewer bits: `python -m recipes.embeddings --help`.

Trains embeddings by a batch-hard triplet loss and cross entropy, and looks up images of classes
that training never saw. Fewer dimensions: the first ones from the start (slicing), a product of low
rank (low_rank), or the ones of the largest norm in rounds of training (pruned). Fewer bits: every
dimension on one uniform grid while training. The picture is the mean average precision over the
bits of an embedding. Writes a folder that reproduces itself.

References: Embedding Compression for Efficient Re-Identification (the three methods and their
bits); Hermans et al., 2017, In Defense of the Triplet Loss for Person Re-Identification.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
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
from recipes.common import checkpoints, data, flags, folder, lanes, settings
from recipes.common.cli import command
from recipes.common.data import Split
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Network, State
from recipes.reports import embeddings as report

METHODS = ("slicing", "low_rank", "pruned")
FLOAT = 32


@dataclass(frozen=True)
class Config(settings.Settings):
    """Embeddings of fewer dimensions and fewer bits: retrieval of classes never seen."""

    out: Path = Path("runs/embeddings")
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = METHODS
    """Fewer dimensions: the first ones (slicing), a product of low rank (low_rank), the ones of the
    largest norm in rounds of training (pruned)."""
    dims: Annotated[tuple[int, ...], flags.at_least(1), flags.DISTINCT] = (128, 64, 32, 16, 8, 4)
    """Dimensions, the most first: that many the network has, without compression."""
    bits: Annotated[tuple[int, ...], flags.at_least(1, FLOAT), flags.DISTINCT] = (
        *(32, 8, 4, 2, 1),
    )
    """Bits of each dimension."""
    held_out: flags.Count = 4
    """The last classes, which only the test sees."""
    margin: flags.Positive = 0.3
    """Of the triplet loss, between distances of embeddings of length 1."""
    seeds: settings.Seeds = 3
    """Seeds of each network, side by side."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested at the end of a training

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if list(self.dims) != sorted(self.dims, reverse=True):
            yield "--dims begins with the most dimensions, and each has fewer than the one before"
        if self.norm == "batch":
            yield "--norm batch has statistics, which this study does not carry; choose another"


class Lane(NamedTuple):
    """An embedding: the dimensions that it has, and their bits."""

    order: jax.Array  # keys (lanes,)
    keep: jax.Array  # (lanes, d), 1 for a dimension that is there, else 0
    bits: jax.Array  # (lanes,)


class Study(NamedTuple):
    """The values that all phases share."""

    config: Config
    train: Split
    test: Split  # of the classes that are held out
    classes: int  # of the training
    steps: int
    chunk: int

    @property
    def each(self) -> int:
        """Lanes for each number of dimensions: bits, then seeds."""
        return len(self.config.bits) * self.config.seeds

    def lane(self, keep: jax.Array) -> Lane:
        """Lanes of these dimensions (numbers x bits x seeds, d)."""
        config, times = self.config, len(keep) // self.each
        bits = jnp.repeat(jnp.array(config.bits, jnp.float32), config.seeds)
        keys = lanes.seed_keys(config.seed, config.seeds)
        return Lane(jnp.tile(keys, len(keep) // config.seeds), keep, jnp.tile(bits, times))

    @property
    def runs(self) -> list[tuple[str, tuple[int, ...]]]:
        """The phases: a method, and its numbers of dimensions."""
        dims, methods = self.config.dims, self.config.method
        at_once = [("slicing", dims if "slicing" in methods else dims[:1])]
        at_once += [("low_rank", dims)] if "low_rank" in methods else []
        return at_once + [("pruned", (r,)) for r in dims[1:] if "pruned" in methods]


# --- the embedding --------------------------------------------------------------------------------


class Embedder(nn.Module):
    """A network, its embedding, and a classifier that reads it."""

    trunk: nn.Module
    dims: int
    classes: int
    low_rank: bool

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, keep: Any = 1.0, bits: Any = float(FLOAT)
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Embeddings (n, d) in float and as they are stored, and logits of classes."""
        z = self.trunk(images, train)
        if self.low_rank:
            z = nn.Dense(self.dims, use_bias=False, name="down")(z)
        z = z * jnp.broadcast_to(keep, z.shape)
        q = stored(z, bits)
        wide = nn.Dense(self.dims, use_bias=False, name="up")(q) if self.low_rank else q
        return z, q, nn.Dense(self.classes, name="classifier")(wide)


def stored(z: jax.Array, bits: Any) -> jax.Array:
    """Embeddings (n, d) on one grid of all dimensions, its gradient straight through.

    One bit is the sign, times the mean size m of what is not 0; 32 bits are the float. Other grids
    end at the largest size, or at 2 m sqrt(levels), by the first step of LSQ, where that is less.
    """
    still = jax.lax.stop_gradient(z)
    size = jnp.abs(still)
    mean = size.sum() / jnp.maximum((size > 0).sum(), 1)
    levels = jnp.maximum(2.0 ** (jnp.asarray(bits) - 1) - 1, 1)
    step = jnp.maximum(jnp.minimum(size.max() / levels, 2 * mean / jnp.sqrt(levels)), 1e-12)
    level = jnp.clip(jnp.round(still / step), -levels, levels)
    used = jnp.where(bits == 1, jnp.sign(still) * mean, step * level)
    return z + jnp.where(bits >= FLOAT, 0, used - still)


def directions(q: jax.Array) -> jax.Array:
    """Embeddings of length 1; what is 0 stays 0."""
    return q * jax.lax.rsqrt(jnp.maximum((q**2).sum(-1, keepdims=True), 1e-12))


def batch_hard(q: jax.Array, labels: jax.Array, margin: float) -> jax.Array:
    """The farthest of the same class is nearer than the nearest of another, by a margin."""
    unit = directions(q)
    distance = jnp.sqrt(jnp.maximum(2 - 2 * unit @ unit.T, 1e-8))
    same = labels[:, None] == labels[None]
    farthest = jnp.max(jnp.where(same, distance, 0), 1)
    nearest = jnp.min(jnp.where(same, jnp.inf, distance), 1)
    return jnp.mean(nn.relu(jnp.where(jnp.isfinite(nearest), farthest - nearest + margin, 0)))


def program(study: Study, low_rank: bool) -> lanes.Program:
    """Training by triplets and cross entropy."""
    config = study.config
    dims = config.dims[0]
    trunk = settings.module_of(config, dims)
    module: Any = Embedder(trunk, dims, study.classes, low_rank)

    def loss(params: Any, state: State, images: Any, labels: Any, lane: Lane) -> Any:
        _, q, logits = module.apply({"params": params}, images, True, lane.keep, lane.bits)
        cross = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        accuracy = (logits.argmax(-1) == labels).mean()
        return cross + batch_hard(q, labels, config.margin), (accuracy, state.batch_stats)

    tx = jp.sparsify(settings.optimizer(config, study.steps), jp.fixed(lanes.keep_all))
    return lanes.program(module, lambda _: tx, study.train, config.batch_size, study.chunk, loss)


# --- the measures ---------------------------------------------------------------------------------


def retrieval(module: Any, split: Split) -> Any:
    """`(params, lane) -> mean average precision, rank-1` of a stack, each image looked up once."""
    labels = jnp.asarray(split.labels)

    def one(given: tuple[Any, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        params, keep, bits = given
        _, q, _ = module.apply({"params": params}, jnp.asarray(split.images), False, keep, bits)
        unit = directions(q)
        near = jnp.where(jnp.eye(len(labels), dtype=bool), -jnp.inf, unit @ unit.T)
        ranked = jnp.argsort(-near, axis=1)[:, :-1]  # the last is the image itself
        hit = labels[ranked] == labels[:, None]
        place = jnp.arange(1, len(labels))[None]
        precision = jnp.where(hit, jnp.cumsum(hit, 1) / place, 0)
        average = precision.sum(1) / jnp.maximum(hit.sum(1), 1)
        return average.mean(), hit[:, 0].mean()

    run = jax.jit(lambda params, lane: jax.lax.map(one, (params, lane.keep, lane.bits)))
    return lambda params, lane: [np.asarray(x) for x in run(params, lane)]


def largest(p: lanes.Program, params: Any, lane: Lane, r: int) -> jax.Array:
    """The r dimensions of the largest norm over the first 10,000 examples, (lanes, d)."""
    module: Any = p.module

    @jax.jit
    @jax.vmap
    def norms(params: Any, keep: jax.Array) -> jax.Array:
        z, _, _ = module.apply({"params": params}, p.data.images[:10_000], False, keep)
        return jnp.where(keep > 0, jnp.sqrt((z**2).mean(0)), -1)

    order = jnp.argsort(jnp.argsort(-norms(params, lane.keep), axis=1), axis=1)
    return (order < r).astype(jnp.float32)


# --- the phases -----------------------------------------------------------------------------------


def one_run(study: Study, kept: Journal, programs: Any, i: int, state: Any) -> tuple[Any, Any]:
    """A method with several numbers of dimensions; or a round, from the network of the last one."""
    method, dims = study.runs[i]
    p, d = programs[method == "low_rank"], study.config.dims[0]
    if method == "pruned":
        lane = study.lane(largest(p, state.params, study.lane(state.masks), dims[0]))
        start = Network(state.params, {}, lanes.keep_all(state.params))
    else:
        numbers = jnp.repeat(jnp.array(dims), study.each)
        lane = study.lane((jnp.arange(d)[None] < numbers[:, None]).astype(jnp.float32))
        start = lanes.initial(p, lane.order)
    words = f"{method}, {dims[0]} dimensions: {len(lane.order)} networks"
    train = lambda state, done, at: lanes.train(p, state, lane, study.steps, at, done)
    name = f"{method} {dims[0]}"
    trained = kept.once(name, study.steps, lanes.begin(p, start, lane), train, words).network
    path = study.config.out / folder.MODEL / name.replace(" ", "-")
    folder.remove(path)  # of a run that was stopped
    checkpoints.save_model(path, trained.params, {}, trained.masks)
    scores = retrieval(p.module, study.test)(trained.params, lane)
    shape = len(dims), len(study.config.bits), study.config.seeds
    both = {
        key: x.reshape(shape).tolist() for key, x in zip(("map", "rank_1"), scores, strict=True)
    }
    if method != "low_rank":  # the first lanes have all dimensions, or those of this round
        state = Network(*lanes.part((trained.params, {}, lane.keep), 0, study.each))
    record = {"method": method, "dims": list(dims), "step": kept.step, **both}
    return state, {"seconds": kept.seconds(), **record}


def embeddings(config: Config) -> dict[str, Any]:
    """Trains, looks up, writes the folder `config.out`; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    seen = dataset.classes - config.held_out
    if seen < 2 or config.held_out < 2:
        raise folder.RecipeError(
            f"--held-out leaves at least 2 of {dataset.classes} classes to training, and takes at "
            f"least 2; got {config.held_out}"
        )
    of = lambda split, chosen: data.Split(split.images[chosen], split.labels[chosen])
    train = of(dataset.train, dataset.train.labels < seen)
    test = of(dataset.test, dataset.test.labels >= seen)
    plan = settings.plan_of(config, len(train.labels))
    study = Study(config, train, test, seen, plan.steps, plan.chunk_steps)
    began = time.perf_counter()
    with journal(config) as kept:
        programs = [program(study, low_rank) for low_rank in (False, True)]
        everything = study.lane(jnp.ones((study.each, config.dims[0])))
        start = lanes.initial(programs[0], everything.order)._replace(masks=everything.keep)
        lanes.phases(kept, len(study.runs), start, partial(one_run, study, kept, programs))
    return report.write(study, kept.records, time.perf_counter() - began)


main = command(Config, embeddings)

if __name__ == "__main__":
    main()
