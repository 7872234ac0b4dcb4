"""Sparse model soups beside their children, phase by phase: `python -m recipes.soup --help`.

Trains a few networks, then prunes and retrains them in phases. Of each, several children retrain
under one mask and are averaged: the soup, which is pruned next. Beside it go one child alone
(iterative magnitude pruning, IMP) and one that retrains as long as all children together. Choices
are made on a validation split, and reported on test data.

Reference: Zimmer et al., 2024, Sparse Model Soups: A Recipe for Improved Pruning via Model
Averaging.
"""

from __future__ import annotations

import math
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
import optax

import jaxprune as jp
from recipes.common import cli, data, dead, flags, lanes, measures, settings, shift
from recipes.common.data import Key
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Lane, Network
from recipes.common.measures import PathSettings
from recipes.common.report import kept_weights
from recipes.reports import soup as report

VARIATIONS = ("order", "weight_decay", "length", "learning_rate")
AVERAGES = ("uniform", "greedy")


@dataclass(frozen=True)
class Config(PathSettings, settings.Shifted):
    """Sparse model soups, several seeds and all their children in one program."""

    out: Path = Path("runs/soup")
    seeds: settings.Seeds = 5
    """The number of networks to prune, each with other initial weights."""
    batch_size: flags.Count = 64
    """Examples per step and network."""
    optimizer: Annotated[str, flags.choice(settings.OPTIMIZERS)] = "sgd"
    learning_rate: flags.Positive = 0.1
    """The highest learning rate, in training and in every retraining."""
    schedule: Annotated[str, flags.choice(settings.SCHEDULES)] = "cosine"
    """The learning rate of training; that of a retraining warms up, then falls linearly."""
    weight_decay: flags.NotNegative = 1e-4
    """This times the weights is added to the gradient."""
    sparsity: flags.Fraction = 0.98
    """The fraction of weights that are pruned after the last phase."""
    phases: flags.Count = 3
    """The number of phases; each prunes the same fraction of the weights that are left."""
    sparsities: Annotated[
        tuple[float, ...], flags.within("[0, 1)"), flags.default("from --sparsity and --phases")
    ] = ()
    """The fraction of weights that are pruned after each phase."""
    retrain: Annotated[float, flags.within("(0, 100]")] = 0.2
    """The length of a retraining, as a fraction of the steps of training."""
    children: Annotated[int, flags.at_least(2)] = 3
    """The number of children of each network in each phase."""
    vary: Annotated[str, flags.choice(VARIATIONS)] = "order"
    """How children differ: the order of the data, or 0.5 to 1.5 times one of the others."""
    average: Annotated[str, flags.choice(AVERAGES)] = "uniform"
    """The soup that the next phase prunes."""
    validation: Annotated[float, flags.within("(0, 1)")] = 0.1
    """The fraction of training examples that is held out, to choose by."""
    points: Annotated[int, flags.odd(3)] = 5
    """Networks along each path between children, both ends included."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested after each phase

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if list(self.sparsities) != sorted(set(self.sparsities)):
            seen = " ".join(f"{s:g}" for s in self.sparsities)
            yield f"--sparsities must rise, for what is pruned stays pruned; got {seen}"
        if self.vary == "weight_decay" and not self.weight_decay:
            yield "--vary weight_decay needs a --weight-decay above 0"


def sparse_model_soups(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    study = study_of(config, dataset)
    began = time.perf_counter()
    with journal(config) as kept:
        first = lanes.initial(study.program, study.keys)
        phase = partial(one_phase, config, study, kept)
        count = 1 + len(study.sparsities)
        lineages = lanes.phases(kept, count, Lineages(first, first, first), phase)
    seconds = time.perf_counter() - began
    chance = dead.chance(dataset.test.labels)
    return report.write(config, study, lineages, kept.records, seconds, chance)


# --- the method -----------------------------------------------------------------------------------


class Lineages(NamedTuple):
    """The state between phases: stacks of networks, one for each seed."""

    soup: Network
    imp: Network  # one child, as long
    longer: Network  # one child, as long as all together


def optimizer_of(config: Config) -> Callable[[Lane], optax.GradientTransformation]:
    """A lane trains by its rates and its weight decay, under its masks."""
    optimizer = settings.OPTIMIZERS[config.optimizer]
    return lambda lane: jp.sparsify(lanes.by_rates(optimizer, lane), jp.fixed(lanes.keep_all))


@jax.jit
def prune(networks: Network, sparsity: Any) -> Network:
    """Keeps the largest of the weights that are left, by one threshold for all layers."""
    magnitude = jp.prune(jp.magnitude, jp.global_threshold, lambda step: sparsity)
    update = lambda masks, params: magnitude.update(jp.MaskState(masks), params, step=0).masks
    masks = jax.vmap(update)(networks.masks, networks.params)
    params = jp.apply_masks(networks.params, masks)
    return networks._replace(params=params, masks=masks)


def one_phase(
    config: Config, s: Study, journal: Journal, phase: int, lineages: Lineages
) -> tuple[Lineages, dict[str, Any]]:
    """Trains dense networks; later prunes every lineage, retrains it, and averages the children."""
    began = time.perf_counter()
    if phase == 0:
        rates = lanes.table(settings.rates(config, s.steps), s.steps, s.length)
        lane = lanes.alike(s.keys, rates, config.weight_decay)
        trained = lanes.trained(journal, "dense", s.program, lineages.soup, lane, s.steps)
        dense = trained._replace(**s.recalibrate(trained.variables))
        tested = {"test_accuracy": {"dense": report.lists(s.test(dense.variables))}}
        return Lineages(dense, dense, dense), _record(phase, 0.0, began) | tested

    sparsity = s.sparsities[phase - 1]
    pruned = Lineages(*(prune(networks, jnp.float32(sparsity)) for networks in lineages))
    children, imp, longer = retrain(config, s, journal, phase, pruned)
    uniform, greedy = s.average(children), s.greedy(children)
    soup = uniform if config.average == "uniform" else greedy.params
    ends = zip(pruned, (soup, imp, longer), strict=True)

    is_last = phase == len(s.sparsities)
    others = [uniform, greedy.params, imp, longer]
    tested = report.judge(config, s, children, greedy, others, is_last)
    between = measures.between_siblings(s.measure, children, config.points)
    record = {
        **_record(phase, sparsity, began),
        **tested,
        "error_barrier": measures.above_chord(between["error"]).tolist(),
        "loss_barrier": measures.above_chord(between["loss"]).tolist(),
        "error_on_paths": report.lists(between["error"]),
        "kept_weights": {
            name: kept_weights(networks.masks)[0].tolist()
            for name, networks in pruned._asdict().items()
        },
    }
    return Lineages(*(networks._replace(**end) for networks, end in ends)), record


def retrain(
    config: Config, s: Study, journal: Journal, phase: int, pruned: Lineages
) -> tuple[Any, Any, Any]:
    """Variables of the children (seeds, children, ...), and of the other two lineages."""
    m, seeds = config.children, config.seeds
    of_children, longest = lanes_of_children(config, s, phase)
    first = of_children.order.reshape(seeds, m)[:, 0]  # the order of the first child

    def single(steps: int) -> Lane:
        rates = lanes.table(jp.tickets.llr(config.learning_rate, steps), steps, s.length)
        return lanes.alike(first, rates, config.weight_decay)

    name, total = f"phase {phase} of {len(s.sparsities)}", m * s.retrain
    both = lanes.trained(
        journal,
        f"{name}: children",
        s.program,
        lanes.join(lanes.repeat(pruned.soup, m), pruned.imp),
        lanes.join(of_children, single(s.retrain)),
        longest,
    )
    alone = f"{name}: {report.longer_name(m)}"
    longer = lanes.trained(journal, alone, s.program, pruned.longer, single(total), total)
    anew = s.recalibrate(both.variables)
    children = lanes.split(lanes.part(anew, 0, m * seeds), seeds, m)
    return children, lanes.part(anew, m * seeds), s.recalibrate(longer.variables)


def lanes_of_children(config: Config, s: Study, phase: int) -> tuple[Lane, int]:
    """The lanes of all children (seeds * children,), and the steps of the longest."""
    m, seeds = config.children, config.seeds
    factors = dict.fromkeys(VARIATIONS, np.ones(m)) | {
        config.vary: np.linspace(report.LEAST, report.MOST, m)
    }
    steps = np.maximum(np.rint(s.retrain * factors["length"]), 1).astype(int)
    peaks = config.learning_rate * factors["learning_rate"]
    rates = [
        lanes.table(jp.tickets.llr(peak, int(n)), int(n), s.length)
        for peak, n in zip(peaks, steps, strict=True)
    ]
    decay = jnp.asarray(config.weight_decay * factors["weight_decay"], jnp.float32)
    child = jnp.arange(m) * (config.vary == "order")
    of_phase = data.folded(s.keys, Key.STUDY + phase)
    order = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(child))(of_phase)
    lane = Lane(order.reshape(-1), *lanes.tile((jnp.stack(rates), decay), seeds))
    return lane, int(steps.max())


# --- what is measured -----------------------------------------------------------------------------


class Ensemble(NamedTuple):
    """Several networks as one: the mean of their probabilities."""

    module: nn.Module

    def apply(self, variables: Any, images: jax.Array) -> jax.Array:
        """Probabilities (n, classes); `variables` are a stack."""
        logits: Any = jax.vmap(self.module.apply, in_axes=(0, None))(variables, images)
        return jax.nn.softmax(logits).mean(0)


def _record(phase: int, sparsity: float, began: float) -> dict[str, Any]:
    took = round(time.perf_counter() - began, 2)
    return {"phase": phase, "sparsity": sparsity, "seconds": took}


# --- what all phases share ------------------------------------------------------------------------


class Study(NamedTuple):
    """What all phases share."""

    program: lanes.Program
    keys: jax.Array  # of the seeds
    sparsities: list[float]  # after each phase
    steps: int  # of training
    retrain: int  # steps of a retraining
    length: int  # of all tables of rates
    recalibrate: Callable[[Any], Any]  # variables -> variables, of a stack
    average: Callable[[Any], Any]  # children (seeds, children, ...) -> their mean
    greedy: Callable[[Any], jp.soups.GreedySoup]  # the same -> a greedy soup (seeds,)
    test: measures.Accuracy
    validate: measures.Accuracy
    together: measures.Accuracy  # of ensembles: children (seeds, children, ...)
    measure: measures.Measure  # of what lies between children
    shift: shift.Measure | None  # of all networks, after the last phase


def study_of(config: Config, dataset: data.Dataset) -> Study:
    """The programs of all phases; raises `RecipeError` where the data are too few."""
    held = max(round(config.validation * len(dataset.train.labels)), 1)
    train, validation = data.hold_out(dataset.train, held)
    plan = settings.plan_of(config, len(train.labels))
    module = settings.module_of(config, dataset.classes)
    tx = optimizer_of(config)
    program = lanes.program(module, tx, train, config.batch_size, plan.chunk_steps)
    retrain = max(round(config.retrain * plan.steps), 1)

    variables = jax.eval_shape(module.init, jax.random.key(0), train.images[:1])
    anew: Callable[[Any], Any] = lambda variables: variables
    if "batch_stats" in variables:
        anew = measures.recalibration(module, train, config.batch_size)
    held_out = measures.measure_on(module, validation)

    average = lambda stack, weights=None: anew(jp.soup(stack, weights))
    score = lambda variables: -held_out(variables)["error"]

    return Study(
        program=program,
        keys=lanes.seed_keys(config.seed, config.seeds),
        sparsities=sparsities_of(config),
        steps=plan.steps,
        retrain=retrain,
        length=max(plan.steps, config.children * retrain, math.ceil(report.MOST * retrain)),
        recalibrate=jax.jit(jax.vmap(anew)),
        average=jax.jit(jax.vmap(average)),
        greedy=jax.jit(jax.vmap(partial(jp.soups.greedy, score=score, average=average))),
        test=measures.accuracy(module, dataset.test),
        validate=measures.accuracy(module, validation),
        together=measures.accuracy(Ensemble(module), dataset.test),
        measure=measures.measure_of(config, module, dataset._replace(train=train)),
        shift=shift.measure_of(module, dataset, config.dataset) if config.shift else None,
    )


def sparsities_of(config: Config) -> list[float]:
    """The sparsity after each phase."""
    by_rate = jp.tickets.sparsities(config.sparsity, config.phases)
    return list(config.sparsities) or by_rate.tolist()


main = cli.command(Config, sparse_model_soups)

if __name__ == "__main__":
    main()
