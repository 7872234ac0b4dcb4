"""Sparse model soups beside their children, phase by phase: `python -m recipes.soup --help`.

Trains a few networks, then prunes and retrains them in phases. Of each, several children retrain
under one mask and are averaged: the soup, which is pruned next. Beside it go one child alone
(iterative magnitude pruning, IMP) and one that retrains as long as all children together. What is
chosen is chosen on a validation split, and reported on test data.

Reference: Zimmer et al., 2024, Sparse Model Soups: A Recipe for Improved Pruning via Model
Averaging.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxprune as jp
from recipes.common import (
    checkpoint,
    cli,
    data,
    heatmaps,
    measures,
    models,
    phases,
    plots,
    results,
    run,
    settings,
    soup_plots,
    soups,
    training,
)
from recipes.common.errors import RecipeError
from recipes.common.heatmaps import Paths
from recipes.common.interrupt import Stopped, deferred_signals
from recipes.common.measures import PathSettings
from recipes.common.progress import progress
from recipes.common.soups import Networks, Recipe, Variables
from recipes.common.writeup import Writeup, finish

PROGRAM = "python -m recipes.soup"
SOUPS, BARRIERS, PATHS, LAYERS = (
    f"plots/{name}.png" for name in ("soups", "barriers", "paths", "layers")
)
AVERAGES = ("uniform", "greedy")
SOUP, GREEDY, BEST, MEAN, ENSEMBLE, IMP = (
    "soup",
    "greedy soup",
    "best child",
    "mean child",
    "ensemble",
    "IMP",
)


@dataclass(frozen=True)
class Config(PathSettings):
    """Sparse model soups, several seeds and all their children in one program."""

    out: Path = Path("runs/soup")
    """The folder to write to."""
    width: float = 1.0
    """What multiplies the sizes of the hidden layers."""
    seeds: int = 5
    """How many networks to prune, each with its own initial weights."""
    optimizer: Annotated[str, cli.choice(tuple(settings.OPTIMIZERS))] = "sgd"
    """The optimizer; sgd has momentum 0.9."""
    learning_rate: float = 0.05
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
    evaluations: Annotated[int, tyro.conf.Suppress] = 1  # networks are tested after each phase


Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a phase
Signalled = Callable[[], int | None]


class Lineages(NamedTuple):
    """What goes from phase to phase."""

    soup: Networks
    imp: Networks  # one child, as long
    longer: Networks  # one child, as long as all together


class Study(NamedTuple):
    """What all phases share."""

    module: nn.Module
    program: phases.Phases
    recipe: Recipe
    sparsities: list[float]
    steps: int  # of training
    recalibrate: Callable[[Variables], Variables]  # of a stack
    average: Callable[[Any], Variables]  # children (seeds, children, ...) -> their mean
    greedy: Callable[[Any], jp.GreedySoup]  # the same -> a greedy soup (seeds,)
    test: soups.Tested  # (params, batch_stats) -> accuracy
    validate: soups.Tested
    together: soups.Tested  # of ensembles
    measure: measures.Measure  # of what lies between children


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, sparse_model_soups, PROGRAM, argv)


def sparse_model_soups(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    check(config)
    run.check_out(config.out, config.overwrite, config.resume)
    dataset = data.load(config.dataset, config.data_dir, config.train_examples)
    study = study_of(config, dataset)
    if not config.resume:
        run.start(config.out, cli.to_yaml(config))
    began = time.perf_counter()
    with deferred_signals() as signalled:
        lineages, records = all_phases(config, study, signalled)
    summary = summarise(config, study, records, time.perf_counter() - began)
    params, masks = training.seed_of((lineages.soup.variables["params"], lineages.soup.masks), 0)
    writeup = write_up(config, summary, results.layers(params, masks))
    save(config, lineages, records, summary, writeup)
    return summary


def check(config: Config) -> None:
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


def sparsities_of(config: Config) -> list[float]:
    """The sparsity after each phase."""
    if config.sparsities:
        return list(config.sparsities)
    left = (1 - config.sparsity) ** (1 / config.phases)  # of each phase
    return [1 - left**k for k in range(1, config.phases)] + [config.sparsity]


def study_of(config: Config, dataset: data.Dataset) -> Study:
    """The programs of all phases; raises `RecipeError` where the data are too few."""
    held = max(round(config.validation * len(dataset.train.labels)), 1)
    train, validation = data.hold_out(dataset.train, held)
    plan = settings.plan_of(config, len(train.labels))
    module = models.model(config.model, dataset.classes, config.norm, config.width)
    retraining = max(round(config.retrain * plan.steps), 1)
    longest = math.ceil(soups.MOST * retraining)
    table = max(plan.steps, config.children * retraining, longest)
    keys = training.seed_keys(config.seed, config.seeds)
    recipe = Recipe(keys, config.learning_rate, config.weight_decay, retraining, table)
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
        recipe=recipe,
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


def all_phases(config: Config, s: Study, signalled: Signalled) -> tuple[Lineages, Records]:
    """Every phase that metrics.jsonl does not hold yet, from the last checkpoint on."""
    metrics, folder = config.out / run.METRICS, config.out / run.CHECKPOINT
    first = soups.initial(s.module, s.recipe.keys, np.asarray(s.program.train.images[:1]))
    like = Lineages(first, first, first)
    if config.resume:
        done, lineages = checkpoint.load_checkpoint(folder, like)
        records = [record for record in run.read_lines(metrics) if record["phase"] <= done]
        run.write(metrics, "".join(json.dumps(record) + "\n" for record in records))
    else:
        dense, record = train_dense(config, s, first, signalled)
        done, lineages, records = 0, Lineages(dense, dense, dense), [record]
        run.append(metrics, record)
        checkpoint.save_checkpoint(folder, 0, lineages)
        _stop(config, signalled(), 0)
    for phase in range(done + 1, len(s.sparsities) + 1):
        lineages, record = one_phase(config, s, lineages, phase, signalled)
        records.append(record)
        run.append(metrics, record)
        if phase < len(s.sparsities):
            checkpoint.save_checkpoint(folder, phase, lineages)
            _stop(config, signalled(), phase)
    return lineages, records


def _stop(config: Config, signum: int | None, phase: int | None) -> None:
    """Raises `Stopped` after a signal; `phase` is the last whole one."""
    if signum and phase is None:
        raise Stopped(signum, "stopped before the first phase; nothing was saved")
    if signum:
        raise Stopped(
            signum,
            f"stopped after phase {phase}; go on with: {PROGRAM} --out {config.out} --resume",
        )


def train_dense(
    config: Config, s: Study, first: Networks, signalled: Signalled
) -> tuple[Networks, dict[str, Any]]:
    """The networks that are pruned, trained; and what is logged of them, as phase 0."""
    began = time.perf_counter()
    make = settings.SCHEDULES[config.schedule]
    peak = config.learning_rate
    schedule = make(peak) if config.schedule == "constant" else make(peak, s.steps)
    table = phases.rates(schedule, s.steps, s.recipe.table)
    lanes = soups.lane(table, config.weight_decay, config.seeds)
    with progress("dense", s.steps) as show:

        def between(step: int) -> None:
            show(step, f"{config.seeds} networks")
            _stop(config, signalled(), None)

        trained = soups.retrain(s.program, first, lanes, s.recipe.keys, s.steps, between)
    dense = Networks(s.recalibrate(trained), first.masks)
    record = {
        "phase": 0,
        "sparsity": 0.0,
        "seconds": round(time.perf_counter() - began, 2),
        "test_accuracy": {"dense": _lists(s.test(*soups.parts(dense.variables)))},
    }
    return dense, record


def one_phase(
    config: Config, s: Study, lineages: Lineages, phase: int, signalled: Signalled
) -> tuple[Lineages, dict[str, Any]]:
    """Prunes and retrains every lineage; and what is logged of it."""
    began, sparsity = time.perf_counter(), s.sparsities[phase - 1]
    pruned = Lineages(*(soups.prune(networks, jnp.float32(sparsity)) for networks in lineages))
    children, imp, longer = retrained(config, s, pruned, phase, signalled)
    greedy, uniform = s.greedy(children), s.average(children)
    tested = judge(config, s, children, greedy, [uniform, greedy.params, imp, longer])

    values = measures.between_siblings(s.measure, children, config.points)
    record = {
        "phase": phase,
        "sparsity": sparsity,
        "seconds": round(time.perf_counter() - began, 2),
        **tested,
        "error_barrier": measures.above_chord(values["error"]).tolist(),
        "loss_barrier": measures.above_chord(values["loss"]).tolist(),
        "error_on_paths": _lists(values["error"]),
        "kept_weights": {
            name: results.kept_weights(networks.masks)[0].tolist()
            for name, networks in zip(Lineages._fields, pruned, strict=True)
        },
    }
    soup = uniform if config.average == "uniform" else greedy.params
    ends = zip((soup, imp, longer), pruned, strict=True)
    return Lineages(*(Networks(variables, own.masks) for variables, own in ends)), record


def retrained(
    config: Config, s: Study, pruned: Lineages, phase: int, signalled: Signalled
) -> tuple[Any, Variables, Variables]:
    """Children (seeds, children, ...), and the networks (seeds, ...) of the other two lineages."""
    r, m, seeds = s.recipe, config.children, config.seeds
    own, longest = soups.variations(r, config.vary, m)
    of_children = jax.tree.map(lambda x: jnp.tile(x, (seeds,) + (1,) * (x.ndim - 1)), own)
    keys = soups.order_keys(r, config.vary, phase, m)
    single = soups.lane(
        phases.rates(jp.llr(r.peak, r.steps), r.steps, r.table), r.weight_decay, seeds
    )
    total = m * r.steps
    whole = soups.lane(phases.rates(jp.llr(r.peak, total), total, r.table), r.weight_decay, seeds)

    with progress(f"phase {phase} of {len(s.sparsities)}", longest + total) as show:

        def between(step: int, before: int = 0) -> None:
            show(before + step, f"{100 * s.sparsities[phase - 1]:.4g} % sparse")
            _stop(config, signalled(), phase - 1)

        both = soups.retrain(
            s.program,
            soups.joined(soups.repeated(pruned.soup, m), pruned.imp),
            soups.joined(of_children, single),
            jnp.concatenate([keys.reshape(-1), keys[:, 0]]),
            longest,
            between,
        )
        long = soups.retrain(
            s.program, pruned.longer, whole, keys[:, 0], total, partial(between, before=longest)
        )
    children, imp = soups.parted(s.recalibrate(both), m * seeds)
    return soups.families(children, m), imp, s.recalibrate(long)


def judge(
    config: Config, s: Study, children: Any, greedy: jp.GreedySoup, others: list[Variables]
) -> dict[str, Any]:
    """Accuracies on test data, and what was chosen on validation data; lists are over seeds."""
    m, seeds = config.children, config.seeds
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), children)
    everyone = soups.parts(soups.joined(flat, *others))
    test, validation = (
        np.split(accuracy(*everyone), [m * seeds]) for accuracy in (s.test, s.validate)
    )
    of_children, chosen_by = (part[0].reshape(seeds, m) for part in (test, validation))
    best = chosen_by.argmax(1)  # the first of equal ones
    uniform, greedily, imp, longer = test[1].reshape(4, seeds)
    accuracy = {
        SOUP: uniform,
        GREEDY: greedily,
        BEST: of_children[np.arange(seeds), best],
        MEAN: of_children.mean(1),
        ENSEMBLE: s.together(*soups.parts(children)),
        IMP: imp,
        longer_name(config): longer,
    }
    return {
        "test_accuracy": {arm: _lists(values) for arm, values in accuracy.items()},
        "children_test_accuracy": _lists(of_children),
        "children_validation_accuracy": _lists(chosen_by),
        "soup_validation_accuracy": _lists(validation[1].reshape(4, seeds)[0]),
        "best_child": best.tolist(),
        "greedily_chosen": np.asarray(greedy.chosen).tolist(),
    }


def longer_name(config: Config) -> str:
    """That of the network that retrains as long as all children together."""
    return f"{IMP} {config.children}x"


def _lists(values: Any) -> Any:
    return np.asarray(values, np.float64).tolist()


def summarise(config: Config, s: Study, records: Records, seconds: float) -> dict[str, Any]:
    """The content of summary.json."""
    after = records[1:]
    arms = list(after[0]["test_accuracy"])

    def of(record: dict[str, Any]) -> dict[str, Any]:
        accuracy = {arm: np.asarray(values) for arm, values in record["test_accuracy"].items()}
        return {
            "sparsity": record["sparsity"],
            "kept_weights": record["kept_weights"]["soup"],
            "test_accuracy": {arm: results.over_seeds(accuracy[arm]) for arm in arms},
            "soup_minus": {
                arm: _difference(accuracy[SOUP] - accuracy[arm]) for arm in arms if arm != SOUP
            },
            "error_barrier": measures.over_siblings(record["error_barrier"], config.children),
            "loss_barrier": measures.over_siblings(record["loss_barrier"], config.children),
            "highest_error_barrier": float(np.max(record["error_barrier"])),
            "greedily_chosen": np.sum(record["greedily_chosen"], 1).tolist(),
        }

    return {
        "recipe": "soup",
        "studies": "sparse model soups beside their children and iterative magnitude pruning",
        "dataset": config.dataset,
        "model": config.model,
        "seeds": config.seeds,
        "children": config.children,
        "vary": config.vary,
        "average": config.average,
        "steps": s.steps,
        "retraining_steps": s.recipe.steps,
        "points": config.points,
        "threshold_points": config.threshold,
        "running_statistics": "recalibrated" if config.norm == "batch" else None,
        "dense_accuracy": results.over_seeds(records[0]["test_accuracy"]["dense"]),
        "phases": [of(record) for record in after],
        "seconds": round(seconds, 2),
        "phase_seconds": [record["seconds"] for record in records],
        "peak_memory_bytes": results.peak_memory_bytes(),
        "environment": results.environment(),
    }


def _difference(per_seed: np.ndarray) -> dict[str, Any]:
    """{mean, error, per_seed}: networks of one seed belong together."""
    error = float(per_seed.std(ddof=1) / np.sqrt(len(per_seed))) if len(per_seed) > 1 else None
    return {"mean": float(per_seed.mean()), "error": error, "per_seed": per_seed.tolist()}


def save(
    config: Config,
    lineages: Lineages,
    records: Records,
    summary: dict[str, Any],
    writeup: Writeup,
) -> None:
    """Writes the soups, the plots, summary.json and report.md; prints the table."""
    variables, masks = lineages.soup
    params, batch_stats = soups.parts(variables)
    checkpoint.save_model(config.out / run.MODEL, params, batch_stats, masks)
    after = records[1:]
    sparsities = [record["sparsity"] for record in after]
    accuracy = {
        arm: np.asarray([record["test_accuracy"][arm] for record in after])
        for arm in after[0]["test_accuracy"]
    }
    gain = {arm: values - accuracy[MEAN] for arm, values in accuracy.items() if arm != MEAN}
    dense = np.asarray(records[0]["test_accuracy"]["dense"])
    heights = [np.asarray(record["error_barrier"]) for record in after]
    alphas = np.linspace(0, 1, config.points)
    panels = {
        f"Children, {100 * record['sparsity']:.4g} % sparse": Paths(
            alphas, np.asarray(record["error_on_paths"]).reshape(-1, config.points)
        )
        for record in (after[:1] + after[-1:] if len(after) > 1 else after)
    }
    figures = {
        SOUPS: soup_plots.soups(sparsities, accuracy, gain, MEAN, dense),
        BARRIERS: soup_plots.barriers(sparsities, heights, config.threshold),
        PATHS: heatmaps.along_paths(panels, config.threshold, "child"),
        LAYERS: plots.layer_density({SOUP: results.layer_density(masks)}),
    }
    finish(config.out, writeup, summary, figures)


def write_up(config: Config, summary: dict[str, Any], layers: str) -> Writeup:
    """The result, for people: a column for each phase."""
    after = summary["phases"]
    arms = list(after[0]["test_accuracy"])

    def row(name: str, say: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *(say(phase) for phase in after)]

    def points(numbers: dict[str, Any]) -> str:
        return results.plus_minus(numbers, 2, 100)

    rows = [
        row(arm, lambda phase, arm=arm: results.percent(phase["test_accuracy"][arm]))  # type: ignore[misc]
        for arm in arms
    ]
    for arm in (MEAN, BEST, longer_name(config)):
        rows.append(
            row(f"soup - {arm}", lambda phase, arm=arm: points(phase["soup_minus"][arm]))  # type: ignore[misc]
        )
    rows.append(row("barrier of children", lambda phase: points(phase["error_barrier"])))
    peak = summary["peak_memory_bytes"] / 1e9
    varied = config.vary.replace("_", " ")
    if config.vary != "order":
        varied += f" ({soups.LEAST:g} to {soups.MOST:g} times)"
    batch_norm = (
        "; running statistics made anew for every network" if config.norm == "batch" else ""
    )
    return Writeup(
        title="Sparse model soups",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds x {config.children} "
            f"children that differ in {varied}, {summary['steps']:,} steps, then "
            f"{summary['retraining_steps']:,} in each phase; dense "
            f"{results.percent(summary['dense_accuracy'])}. Test accuracy with standard deviation "
            "over seeds; differences and barriers in points, with standard error over seeds; what "
            f"is chosen, on {100 * config.validation:g} % of train{batch_norm}"
        ),
        columns=[f"{100 * phase['sparsity']:.4g} % sparse" for phase in after],
        rows=rows,
        footline=f"{summary['seconds']:.0f} s in all, peak memory {peak:.2f} GB",
        command=run.again(PROGRAM, config.out),
        pictures={
            SOUPS: "Left: mean over seeds, bands from the worst seed to the best. Right: each dot "
            "is a seed, beside the mean of its children; with the mean over seeds and its "
            f"standard error. {longer_name(config)} retrains as long as all children together; "
            "the ensemble runs all of them.",
            BARRIERS: "By how many points the test error rises above the chord between every two "
            "children of a seed: below the dashed line they are linearly connected.",
            PATHS: "Test error from child to child, every pair of every seed: in the first phase "
            "and in the last.",
            LAYERS: "Weights kept in each layer: mean and standard deviation over seeds.",
        },
        layers={SOUP: layers},
        models=[run.MODEL],
        environment=summary["environment"],
    )


if __name__ == "__main__":
    main()
