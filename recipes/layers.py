"""Whole blocks as tickets: `python -m recipes.layers --help`.

Which blocks of a residual network can go before it trains? Blocks are scored by the saliency of
their weights (snip), by how these carry the gradient (grasp), by their size (magnitude), or by
chance (random): at the first weights, or after a dense training. The lowest go, the others go back
to their first weights, and the shallower network trains as long as the whole one. It is a smaller
network, so that it costs less. Writes a folder that reproduces itself. Test data choose nothing:
every number is measured at the last step.

Reference: Jordao et al., 2023, When Layers Play the Lottery, all Tickets Win at Initialization.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import (
    checkpoints,
    cli,
    data,
    dead,
    flags,
    folder,
    lanes,
    measures,
    models,
    settings,
    text,
)
from recipes.common.data import Dataset, Key
from recipes.common.folder import RecipeError
from recipes.common.journal import At, Journal, journal
from recipes.common.lanes import Lane, Network, State
from recipes.common.models import classification
from recipes.common.models.residual import WIDTH, Residual
from recipes.reports import layers as report
from recipes.small_dense import DECODER, dataset_of, narrowed

METHODS = ("snip", "grasp", "magnitude", "random")
WHEN = ("init", "trained")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Blocks that are removed before training, by several scores."""

    out: Path = Path("runs/layers")
    dataset: Annotated[str, flags.choice((*data.DATASETS, *text.DATASETS))] = "digits"
    """The data set. scikit-learn brings the digits, and Python the names of characters; the others
    are read from --data-dir. Images train a residual network of fully connected blocks, and text
    trains a decoder, which tells the next character."""
    context: flags.Count = 64
    """names, tiny_shakespeare: characters that the decoder reads at once."""
    blocks: Annotated[int, flags.at_least(2)] = 8
    """The number of blocks of the whole network."""
    removed: Annotated[tuple[int, ...], flags.at_least(1), flags.DISTINCT] = (2, 4, 6, 7)
    """How many blocks go: one number, or several."""
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = METHODS
    """What blocks are scored by."""
    when: Annotated[tuple[str, ...], flags.choice(WHEN), flags.DISTINCT] = WHEN
    """Which weights are scored: the first ones, or those of a dense training; random needs none."""
    examples: flags.Count = 100
    """snip, grasp: training examples that the score sees, others for each seed."""
    tolerance: Annotated[float, flags.within("[0, 100]")] = 0.5
    """A ticket wins if its mean is less than this many points below the whole network."""
    seeds: settings.Seeds = 3
    """Seeds of each network, side by side."""
    schedule: Annotated[str, flags.choice(settings.SCHEDULES)] = "cosine"
    """The learning rate over time; cosine falls to zero, drops to a tenth at 1/2 and at 3/4."""
    model: Annotated[str, flags.HIDDEN] = "mlp"
    norm: Annotated[str, flags.HIDDEN] = "group"
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested at the end of a training
    keep_best: Annotated[bool, flags.HIDDEN] = False

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if max(self.removed, default=0) >= self.blocks:
            yield (
                f"--removed must leave a block of --blocks {self.blocks}, got {max(self.removed)}"
            )


class Cell(NamedTuple):
    """How a ticket is made."""

    method: str
    when: str
    removed: int

    @property
    def arm(self) -> str:
        """The name of its arm."""
        return self.method if self.method == "random" else f"{self.method}, {self.when}"


Scorer = Callable[[jax.Array, Any], jax.Array]


class Study(NamedTuple):
    """The values that all phases share."""

    config: Config
    dataset: Dataset
    programs: dict[int, lanes.Program]  # by the number of blocks
    keys: jax.Array  # of the seeds
    steps: int
    cells: list[Cell]
    tests: dict[int, measures.Accuracy]  # by the number of blocks
    scorers: dict[str, Scorer]  # by method


class Whole(NamedTuple):
    """The whole networks, stacks over seeds."""

    first: Network  # before any training
    trained: Network


# --- the method -----------------------------------------------------------------------------------


def network_of(config: Config, classes: int, blocks: int) -> nn.Module:
    """The network of so many blocks, all of them with a shortcut that is the identity."""
    if config.dataset in text.DATASETS:
        size = narrowed(DECODER, config.width)
        return models.Decoder(classes, size._replace(layers=blocks))
    return Residual(blocks, max(round(config.width * WIDTH), 1), classes)


def scorer(config: Config, module: nn.Module, dataset: Dataset, method: str) -> Scorer:
    """(keys, params) -> what each block is worth (seeds, blocks); higher = keep."""
    names = [f"block_{i}" for i in range(config.blocks)]
    if method == "random":
        return jax.vmap(lambda key, params: jax.random.uniform(key, (len(names),)))
    loss_fn = classification(module)
    images, labels = map(jnp.asarray, dataset.train)

    @jax.jit
    @jax.vmap
    def scores(key: jax.Array, params: Any) -> jax.Array:
        rows = jax.random.choice(key, len(labels), (config.examples,), replace=False)
        loss = lambda params: loss_fn(params, {}, images[rows], labels[rows])[0]
        made = {
            "snip": lambda: jp.at_init.snip(loss, params),
            "grasp": lambda: jp.at_init.grasp(loss, params),
            "magnitude": lambda: jp.magnitude(jp.kernels(params)),
        }[method]()
        worth = jp.structured.block_scores(made, names)
        return jnp.stack([worth[name] for name in names])

    return scores


def survivors(scores: np.ndarray, removed: int) -> np.ndarray:
    """The blocks that stay, in their order, int (seeds, blocks left): those of the highest scores.

    >>> survivors(np.array([[0.5, 0.1, 0.9], [1.0, 1.0, 0.0]]), 1)
    array([[0, 2],
           [0, 1]])
    """
    left = scores.shape[1] - removed
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :left], axis=1)


def shallower(params: Any, kept: np.ndarray) -> Any:
    """The params of the network of these blocks alone, of a stack; each seed has its blocks."""
    seeds, left = kept.shape
    every = [params[f"block_{i}"] for i in range(sum(name.startswith("block_") for name in params))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x, 1), *every)  # (seeds, blocks, ...)
    chosen = jax.tree.map(lambda x: x[np.arange(seeds)[:, None], kept], stacked)
    rest = {name: own for name, own in params.items() if not name.startswith("block_")}
    return rest | {f"block_{j}": jax.tree.map(lambda x, j=j: x[:, j], chosen) for j in range(left)}


# --- the phases -----------------------------------------------------------------------------------


def one_phase(s: Study, kept: Journal, phase: int, whole: Whole) -> tuple[Whole, dict[str, Any]]:
    """Trains the whole networks; later the tickets of a cell."""
    blocks = s.config.blocks
    if phase == 0:
        trained, seconds = train(s, kept, "whole", blocks, whole.first)
        record = {"cell": None, **told(s, kept, "whole", blocks, trained)}
        return whole._replace(trained=trained), record | {"training_seconds": seconds}
    cell = s.cells[phase - 1]
    scored = whole.first if cell.when == "init" else whole.trained
    keys = data.folded(s.keys, Key.METHOD)
    scores = np.asarray(s.scorers[cell.method](keys, scored.params))
    places = survivors(scores, cell.removed)
    params = shallower(whole.first.params, places)
    name, left = "-".join(map(str, cell)), blocks - cell.removed
    start = Network(params, {}, lanes.keep_all(params))
    ticket, seconds = train(s, kept, name, left, start)
    record = {"cell": list(cell), "kept": places.tolist(), "scores": scores.tolist()}
    return whole, record | told(s, kept, name, left, ticket) | {"training_seconds": seconds}


def train(s: Study, kept: Journal, name: str, blocks: int, start: Network) -> tuple[Network, float]:
    """The networks after all steps, and the seconds of a step, of all seeds together.

    It is the median over the calls of the device, of which the first ones may be slow.
    """
    program, lane, of_calls = s.programs[blocks], Lane(s.keys), [0.0]

    def to_the_end(state: State, done: int, at: At) -> State:
        before = 0.0
        for point in lanes.advance(program, state, lane, s.steps, done):
            of_calls.append((point.seconds - before) / (point.step - done))
            before, done, state = point.seconds, point.step, point.state
            at(done, state)
        return lanes.gathered(state)

    begun = lanes.begin(program, start, lane)
    end = kept.once(name, s.steps, begun, to_the_end, f"{len(s.keys)} networks of {blocks} blocks")
    return end.network, float(np.median(of_calls[1:] or of_calls))


def told(s: Study, kept: Journal, name: str, blocks: int, trained: Network) -> dict[str, Any]:
    """Saves the networks; their accuracies."""
    path = s.config.out / folder.MODEL / name
    folder.remove(path)  # of a run that was stopped
    checkpoints.save_model(path, *trained)
    return {
        "test_accuracy": s.tests[blocks](trained.variables).tolist(),
        "seconds": kept.seconds(),
    }


# --- the command ----------------------------------------------------------------------------------


def layers(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    s, began = study_of(config), time.perf_counter()
    with journal(config) as kept:
        first = lanes.initial(s.programs[config.blocks], s.keys)
        whole = Whole(first, first)
        lanes.phases(kept, 1 + len(s.cells), whole, partial(one_phase, s, kept))
        chance = dead.chance(s.dataset.test.labels)
        return report.write(s, kept.records, chance, time.perf_counter() - began)


def study_of(config: Config) -> Study:
    """The data, the networks and the tickets of a run."""
    dataset = dataset_of(config, config.context)
    plan = settings.plan_of(config, len(dataset.train.labels))
    if config.examples > len(dataset.train.labels):
        raise RecipeError(
            f"--examples {config.examples} is more than all {len(dataset.train.labels):,} examples"
        )
    tx = jp.sparsify(settings.optimizer(config, plan.steps), jp.fixed(lanes.keep_all))
    how = dataset.train, plan.batch_size, plan.chunk_steps
    depths = [config.blocks, *(config.blocks - removed for removed in config.removed)]
    modules = {depth: network_of(config, dataset.classes, depth) for depth in depths}
    program = lambda module: lanes.program(module, lambda lane: tx, *how)
    cells = [
        Cell(method, when, removed)
        for method in config.method
        for when in (WHEN[:1] if method == "random" else config.when)
        for removed in config.removed
    ]
    return Study(
        config=config,
        dataset=dataset,
        programs={depth: program(module) for depth, module in modules.items()},
        keys=lanes.seed_keys(config.seed, config.seeds),
        steps=plan.steps,
        cells=cells,
        tests={depth: measures.accuracy(m, dataset.test) for depth, m in modules.items()},
        scorers={
            method: scorer(config, modules[config.blocks], dataset, method)
            for method in config.method
        },
    )


main = cli.command(Config, layers)

if __name__ == "__main__":
    main()
