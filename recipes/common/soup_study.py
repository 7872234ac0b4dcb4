"""What a study of sparse model soups asks, and the programs that all its phases share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import tyro

import jaxprune as jp
from recipes.common import cli, data, measures, models, phases, settings, soups, training
from recipes.common.errors import RecipeError
from recipes.common.measures import PathSettings
from recipes.common.soups import Retraining, Variables

AVERAGES = ("uniform", "greedy")


@dataclass(frozen=True)
class SoupSettings(PathSettings):
    """Sparse model soups, several seeds and all their children in one program."""

    width: float = 1.0
    """What multiplies the sizes of the hidden layers."""
    seeds: int = 5
    """How many networks to prune, each with its own initial weights."""
    batch_size: int = 64
    """Examples per step and network."""
    optimizer: Annotated[str, cli.choice(tuple(settings.OPTIMIZERS))] = "sgd"
    """The optimizer; sgd has momentum 0.9."""
    learning_rate: float = 0.1
    """The learning rate at its highest, in training and in every retraining."""
    schedule: Annotated[str, cli.choice(tuple(settings.SCHEDULES))] = "cosine"
    """The learning rate of training; that of a retraining falls in a line, after a warm-up."""
    weight_decay: float = 1e-4
    """What is added to the gradient, times the weights."""
    sparsity: float = 0.98
    """The fraction of weights pruned after the last phase, in [0, 1)."""
    phases: int = 3
    """How many phases, each of which prunes the same fraction of what is left."""
    sparsities: Annotated[
        tuple[float, ...], cli.default_is("FLOAT ...", "those of --sparsity and --phases")
    ] = ()
    """The fraction pruned after each phase."""
    retrain: float = 0.2
    """How long a retraining is, as a fraction of the steps of training."""
    children: int = 3
    """Children of each network in each phase, at least 2."""
    vary: Annotated[str, cli.choice(soups.VARIATIONS)] = "order"
    """In what children differ: the order of the data, or 0.5 to 1.5 times one of the others."""
    average: Annotated[str, cli.choice(AVERAGES)] = "uniform"
    """Which soup goes on to the next phase."""
    validation: float = 0.1
    """The fraction of training examples that is held out, to choose by."""
    points: int = 5
    """Networks along each path between children, both ends included: an odd number."""
    log_every: Annotated[int | None, cli.default_is("INT", "mlp, lenet 20, conv 5, resnet20 1")] = (
        None
    )
    """Steps between looks at the progress, and at Ctrl-C."""
    evaluations: Annotated[int, tyro.conf.Suppress] = 1  # networks are tested after each phase


def check(config: SoupSettings) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    measures.check(config)
    cli.one_of("--vary", config.vary, soups.VARIATIONS)
    cli.one_of("--average", config.average, AVERAGES)
    cli.in_range("--width", config.width, 0, 100, "(]")
    cli.in_range("--sparsity", config.sparsity, 0, 1, "[)")
    cli.in_range("--weight-decay", config.weight_decay, 0, math.inf, "[)")
    cli.in_range("--retrain", config.retrain, 0, 100, "(]")
    cli.in_range("--validation", config.validation, 0, 1, "()")
    cli.at_least("--phases", config.phases, 1)
    cli.at_least("--children", config.children, 2)
    for sparsity in config.sparsities:
        cli.in_range("--sparsities", sparsity, 0, 1, "[)")
    if list(config.sparsities) != sorted(set(config.sparsities)):
        seen = " ".join(f"{s:g}" for s in config.sparsities)
        raise RecipeError(f"--sparsities must rise, for what is pruned stays pruned; got {seen}")
    if config.vary == "weight_decay" and not config.weight_decay:
        raise RecipeError("--vary weight_decay needs a --weight-decay above 0")


def sparsities_of(config: SoupSettings) -> list[float]:
    """The sparsity after each phase."""
    if config.sparsities:
        return list(config.sparsities)
    return jp.phase_sparsities(config.sparsity, config.phases).tolist()


class Study(NamedTuple):
    """What all phases share."""

    module: nn.Module
    program: phases.Phases
    retraining: Retraining
    sparsities: list[float]
    steps: int  # of training
    recalibrate: Callable[[Variables], Variables]  # of a stack
    average: Callable[[Any], Variables]  # children (seeds, children, ...) -> their mean
    greedy: Callable[[Any], jp.GreedySoup]  # the same -> a greedy soup (seeds,)
    test: soups.Tested  # (params, batch_stats) -> accuracy
    validate: soups.Tested
    together: soups.Tested  # of ensembles
    measure: measures.Measure  # of what lies between children


def study_of(config: SoupSettings, dataset: data.Dataset) -> Study:
    """The programs of all phases; raises `RecipeError` where the data are too few."""
    held = max(round(config.validation * len(dataset.train.labels)), 1)
    train, validation = data.hold_out(dataset.train, held)
    plan = settings.plan_of(config, len(train.labels))
    module = models.model(config.model, dataset.classes, config.norm, config.width)
    steps = max(round(config.retrain * plan.steps), 1)
    longest = math.ceil(soups.MOST * steps)
    table = max(plan.steps, config.children * steps, longest)
    keys = training.seed_keys(config.seed, config.seeds)
    how = Retraining(keys, config.learning_rate, config.weight_decay, steps, table)
    optimizer = settings.OPTIMIZERS[config.optimizer]
    program = phases.phases(module, optimizer, train, config.batch_size, plan.chunk_steps)

    variables = jax.eval_shape(module.init, jax.random.key(0), train.images[:1])
    anew: Callable[[Variables], Variables] = lambda variables: variables
    if "batch_stats" in variables:
        anew = measures.recalibration(module, train, config.batch_size)
    held_out = measures.measure_on(module, validation)

    def average(stack: Any, weights: Any = None) -> Variables:
        return anew(jp.soup(stack, weights))

    def score(variables: Variables) -> jax.Array:
        return -held_out(variables)["error"]

    return Study(
        module=module,
        program=program,
        retraining=how,
        sparsities=sparsities_of(config),
        steps=plan.steps,
        recalibrate=jax.jit(jax.vmap(anew)),
        average=jax.jit(jax.vmap(average)),
        greedy=jax.jit(jax.vmap(partial(jp.greedy_soup, score=score, average=average))),
        test=training.make_evaluate(module, dataset.test),
        validate=training.make_evaluate(module, validation),
        together=soups.ensemble_accuracy(module, dataset.test),
        measure=measures.measure_of(config, module, dataset._replace(train=train)),
    )
