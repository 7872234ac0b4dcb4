"""Lottery tickets and what they compete with: `python -m recipes.tickets --help`.

Trains several dense replicates, then prunes their smallest weights phase after phase, retraining
after each: with the weights rewound (ltr), with the rates rewound or restarted (lrr, ft, slr, clr,
llr, allr), or by as much as the PQ index allows (sap); beside them tickets with new initial weights
(reinit) and with random masks of the same layer-wise counts (random). What is reported of a network
is its test accuracy at the step of its best validation accuracy.

References: Frankle and Carbin, 2019, The Lottery Ticket Hypothesis; Renda et al., 2020, Comparing
Rewinding and Fine-tuning in Neural Network Pruning; Zimmer et al., 2023, How I Learned to Stop
Worrying and Love Retraining; Diao et al., 2023, Pruning Deep Neural Networks from a Sparsity
Perspective.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np

import jaxprune as jp
from jaxprune.masks import all_kept
from recipes.common import (
    checkpoint,
    cli,
    data,
    dead,
    lottery,
    models,
    phases,
    plots,
    results,
    run,
    settings,
    training,
    weights_left,
)
from recipes.common.errors import RecipeError
from recipes.common.journal import journal
from recipes.common.lottery import CONTROLS, METHODS, End, Study
from recipes.common.lottery_run import Records, go_through
from recipes.common.writeup import Writeup, finish

PROGRAM = "python -m recipes.tickets"
PICTURE, LAYERS = "plots/tickets.png", "plots/layers.png"
ARMS = (*METHODS, *CONTROLS)
ALLOCATIONS: dict[str, Any] = {"uniform": jp.uniform, "global": jp.global_threshold}
LAST = ("half", "exempt", "pruned")
SCOPES: dict[str, Any] = {"neuron": {"axis": -1}, "layer": {}, "global": {"together": True}}
EPOCHS = {"digits": 20, "mnist": 2, "cifar10": 10}
MOST_WITH_SPREAD = 4  # arms: there is no room for more on 80 columns
HELD_OUT = 0.1  # of the training examples, unless said


@dataclass(frozen=True)
class Config(settings.Settings):
    """Iterative pruning: lottery tickets, their controls, and ways of retraining."""

    out: Path = Path("runs/tickets")
    """The folder to write to."""
    seeds: int = 5
    """How many replicates to train at once."""
    epochs: Annotated[float | None, cli.default_is("FLOAT", "digits 20, mnist 2, cifar10 10")] = (
        None
    )
    """Passes over the data, of the first training and of each rewound one."""
    evaluations: int = 5
    """How often in a phase to measure validation accuracy, evenly spread."""
    log_every: Annotated[int | None, cli.default_is("INT", "mlp, lenet 20, conv 5, resnet20 1")] = (
        None
    )
    """Steps in one call of the device; between them it can be stopped. More is faster."""
    method: Annotated[tuple[str, ...], cli.several(ARMS)] = ("ltr", "reinit", "random")
    """One or several to train side by side; reinit and random are controls of ltr."""
    sparsity: float = 0.98
    """The fraction of weights that are pruned after the last phase, in [0, 1)."""
    rate: Annotated[float | None, cli.default_is("FLOAT", "what leads to --sparsity")] = None
    """Instead of --sparsity: the fraction of the weights left that each phase prunes, in (0, 1)."""
    phases: int = 18
    """How often to prune and train again; 18 to 0.98 prune 20 % of what is left, as published."""
    rewind: int = 0
    """ltr, sap: the step of the first training whose weights to rewind to; 0 are the initial."""
    retrain_steps: Annotated[int | None, cli.default_is("INT", "as many as at first")] = None
    """lrr, ft, slr, clr, llr, allr: training steps in a phase."""
    allocation: Annotated[str, cli.choice(tuple(ALLOCATIONS))] = "uniform"
    """The same fraction of each layer, or one threshold for all, which may empty a layer."""
    last_layer: Annotated[
        str | None,
        cli.choice(
            LAST,
            "half of --allocation uniform, exempt of global",
            "The layer of the logits: pruned at half the rate of the others, not at all, or as "
            "they are; --sparsity is that of the others.",
        ),
    ] = None
    sap_norms: tuple[float, float] = (0.5, 1.0)
    """sap: p and q of the PQ index, 0 < p <= 1 <= q."""
    sap_scope: Annotated[str, cli.choice(tuple(SCOPES))] = "global"
    """sap: what has an index, and a number of weights to prune, of its own."""
    validation: Annotated[int | None, cli.default_is("INT", "a tenth")] = None
    """Training examples to hold out, to choose the step to test by."""
    tolerance: float = 0.5
    """An arm keeps up with dense networks while its mean is less than so many points below."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, tickets, PROGRAM, argv)


def tickets(config: Config) -> dict[str, Any]:
    """Trains, prunes, writes the folder `config.out`; returns what summary.json holds."""
    check(config)
    run.check_out(config.out, config.overwrite, config.resume)
    dataset = data.load(config.dataset, config.data_dir, config.train_examples)
    held = config.validation
    held = round(HELD_OUT * len(dataset.train.labels)) if held is None else held
    train, validation = data.hold_out(dataset.train, held)
    module = models.model(config.model, dataset.classes, config.norm)
    study = make(config, module, train, training.make_evaluate(module, validation))

    began = time.perf_counter()
    test = training.make_evaluate(module, dataset.test)
    with journal(config, PROGRAM) as kept:
        records, ends = go_through(study, config.phases, test, kept)
    seconds = time.perf_counter() - began
    chance = dead.chance(dataset.test.labels)
    summary = summarise(config, study, records, ends, held, seconds, chance)
    save(config, records, ends, summary)
    return summary


def check(config: Config) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    settings.check(config)
    cli.some_of("--method", config.method, ARMS)
    for arm in CONTROLS:
        if arm in config.method and "ltr" not in config.method:
            raise RecipeError(f"--method {arm} is a control of ltr: give both")
    cli.in_range("--sparsity", config.sparsity, 0, 1, "()")
    if config.rate is not None:
        cli.in_range("--rate", config.rate, 0, 1, "()")
    cli.at_least("--phases", config.phases, 1)
    cli.at_least("--rewind", config.rewind, 0)
    if config.retrain_steps is not None:
        cli.at_least("--retrain-steps", config.retrain_steps, 1)
    cli.one_of("--allocation", config.allocation, tuple(ALLOCATIONS))
    cli.one_of("--last-layer", last_layer(config), LAST)
    if last_layer(config) == "half" and config.allocation != "uniform":
        raise RecipeError(
            "--last-layer half is half the rate of the other layers, and only with --allocation "
            "uniform do they have one; choose exempt or pruned"
        )
    p, q = config.sap_norms
    if not (0 < p <= 1 <= q and p < q):
        raise RecipeError(f"--sap-norms must be p and q, 0 < p <= 1 <= q, p < q; got {p:g} {q:g}")
    cli.one_of("--sap-scope", config.sap_scope, tuple(SCOPES))
    cli.in_range("--tolerance", config.tolerance, 0, 100)
    if "ft" in config.method and config.schedule == "cosine":
        raise RecipeError(
            "--method ft trains at the lowest rate of --schedule cosine, which is all but zero; "
            "use --schedule drops or constant"
        )


def make(
    config: Config, module: nn.Module, train: data.Split, validation: lottery.Accuracy
) -> Study:
    """What all phases share; raises `RecipeError` for steps that do not fit one another."""
    epochs = EPOCHS[config.dataset] if config.epochs is None else config.epochs
    plan = settings.plan_of(replace(config, epochs=epochs), len(train.labels))
    retrain = plan.steps if config.retrain_steps is None else config.retrain_steps
    if config.rewind >= plan.steps:
        raise RecipeError(
            f"--rewind {config.rewind}: the first training has {plan.steps} steps, and weights are "
            "stored before the last alone; rewind to an earlier step, or train longer"
        )
    if "lrr" in config.method and retrain > plan.steps:
        raise RecipeError(
            f"--method lrr can't replay the last {retrain} of {plan.steps} rates; "
            "--retrain-steps must be at most the steps of the first training"
        )
    optimizer = settings.OPTIMIZERS[config.optimizer]
    program = phases.phases(module, optimizer, train, plan.batch_size, plan.chunk_steps)
    return Study(
        program=program,
        arms=config.method,
        transforms=transforms(config, module, train.images[:1]),
        keys=training.seed_keys(config.seed, config.seeds),
        schedule=settings.rates(config, plan.steps),
        peak=config.learning_rate,
        steps=plan.steps,
        rewind=config.rewind,
        retrain_steps=retrain,
        evaluations=config.evaluations,
        validation=validation,
    )


def last_layer(config: Config) -> str:
    """How the layer of the logits is pruned."""
    return config.last_layer or ("half" if config.allocation == "uniform" else "exempt")


def sparsity_of(config: Config) -> float:
    """After the last phase."""
    if config.rate is None:
        return config.sparsity
    return float(jp.sparsity_after(config.rate, config.phases))


def transforms(config: Config, module: nn.Module, image: Any) -> dict[str, jp.MaskTransform]:
    """Method -> what each phase prunes."""
    last = models.FIRST_LAST[config.model][1]
    sparsity, n = sparsity_of(config), config.phases
    allocation = ALLOCATIONS[config.allocation]
    if last_layer(config) == "half":
        rate = jp.phase_rate(sparsity, n)
        slower = math.log1p(-rate / 2) / math.log1p(-rate)
        allocation = jp.per_layer({last: lambda s: 1 - (1 - s) ** slower}, jp.uniform)
    exempt = last_layer(config) == "exempt"
    prunable = jp.matching(exclude=last) if exempt else jp.kernels
    params = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    everything = all_kept(jp.kernels(params))

    def of_all(transform: jp.MaskTransform) -> jp.MaskTransform:
        return jp.chain(jp.fixed(everything), transform)  # what is exempt has masks too

    p, q = config.sap_norms
    smallest = of_all(
        jp.prune(jp.magnitude, allocation, jp.phase_schedule(sparsity, n), prunable=prunable)
    )
    adaptive = of_all(jp.sap(p, q, **SCOPES[config.sap_scope], prunable=prunable))
    return {m: adaptive if m == "sap" else smallest for m in METHODS}


# --- what came of it ------------------------------------------------------------------------------


def summarise(
    config: Config,
    study: Study,
    records: Records,
    ends: Mapping[str, End],
    held: int,
    seconds: float,
    chance: float,
) -> dict[str, Any]:
    """The content of summary.json."""
    _, weights = results.kept_weights(next(iter(ends.values())).network.masks)

    def of(numbers: Mapping[str, Any], phase: int) -> dict[str, Any]:
        keys = ("end_test_accuracy", "validation_accuracy", "early_step")
        return {
            "phase": phase,
            "weights_left": float(np.mean(numbers["kept_weights"]) / weights),
            "kept_weights": numbers["kept_weights"],
            "test_accuracy": results.accuracy(
                numbers["test_accuracy"], chance, numbers["empty_layers"]
            ),
            **{key: results.over_seeds(numbers[key]) for key in keys},
        }

    dense = of(records[0]["dense"], 0)
    arms = {arm: [of(r[arm], r["phase"]) for r in records[1:]] for arm in config.method}
    least = dense["test_accuracy"]["mean"] - config.tolerance / 100
    return {
        "recipe": "tickets",
        "studies": "test accuracy against the weights left, phase after phase of pruning",
        "dataset": config.dataset,
        "model": config.model,
        "seeds": config.seeds,
        "steps": study.steps,
        "phase_steps": {arm: study.length_of(arm) for arm in config.method},
        "rewind": study.rewind,
        "validation_examples": held,
        "prunable_weights": weights,
        "tolerance_points": config.tolerance,
        "chance": chance,
        "dense": dense,
        "arms": arms,
        "keeps_up_to": {
            arm: None if dead.at_chance(dense["test_accuracy"]) else keeps_up_to(found, least)
            for arm, found in arms.items()
        },
        "seconds": round(seconds, 2),
        "peak_memory_bytes": results.peak_memory_bytes(),
        "environment": results.environment(),
    }


def keeps_up_to(found: Sequence[Mapping[str, Any]], least: float) -> float:
    """The fewest weights left, as a fraction, down to which an arm is at least so accurate."""
    reached = 1.0
    for numbers in found:
        if numbers["test_accuracy"]["mean"] < least:
            break
        reached = numbers["weights_left"]
    return reached


def save(
    config: Config, records: Records, ends: Mapping[str, End], summary: dict[str, Any]
) -> None:
    """Writes the networks of the last phase, the plots, summary.json and report.md."""
    for arm, end in ends.items():
        checkpoint.save_model(config.out / run.MODEL / arm, *end.network)
    weights = summary["prunable_weights"]
    curves = {
        arm: (
            [np.mean(r[arm]["kept_weights"]) / weights for r in records[1:]],
            np.array([r[arm]["test_accuracy"] for r in records[1:]]),
        )
        for arm in config.method
    }
    methods = [arm for arm in config.method if arm in METHODS]
    density = {arm: results.layer_density(ends[arm].network.masks) for arm in methods}
    drawn = plots.looks(["dense", *config.method])
    figures = {
        PICTURE: weights_left.picture(curves, np.array(records[0]["dense"]["test_accuracy"])),
        LAYERS: plots.layer_density(density, drawn),
    }
    layers = {}
    for arm in methods:
        params, _, masks = training.seed_of(ends[arm].network, 0)
        layers[arm] = results.layers(params, masks)
    finish(config.out, write_up(config, summary, layers), summary, figures)


def write_up(config: Config, summary: dict[str, Any], layers: Mapping[str, str]) -> Writeup:
    """The result, for people: a row for each phase, or with many arms for each arm."""
    arms, dense = summary["arms"], summary["dense"]["test_accuracy"]
    planned = next((arm for arm in config.method if arm != "sap"), "sap")

    left = {arm: [f"{100 * n['weights_left']:.3g}" for n in arms[arm]] for arm in arms}
    few = len(arms) <= MOST_WITH_SPREAD

    def accuracy(numbers: dict[str, Any]) -> str:
        mean, std = 100 * numbers["mean"], 100 * numbers["std"]
        return (f"{mean:.2f} ± {std:.2f}" if few else f"{mean:.1f}") + dead.mark(numbers)

    cells = {arm: [accuracy(n["test_accuracy"]) for n in arms[arm]] for arm in config.method}
    if planned != "sap" and "sap" in arms:  # it keeps as many as it will
        cells["sap keeps"] = left["sap"]
    columns, rows = list(cells), list(zip(left[planned], *cells.values(), strict=True))
    if not few:
        columns, rows = left[planned], [(arm, *row) for arm, row in cells.items()]
    held = ", ".join(
        f"{arm} {dead.NOT_MEASURED if v is None else f'{100 * v:.3g} %'}"
        for arm, v in summary["keeps_up_to"].items()
    )
    peak = summary["peak_memory_bytes"] / 1e9
    return Writeup(
        title="Lottery tickets",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} replicates, "
            f"{summary['steps']:,} steps of first training, rewind step {summary['rewind']}: dense "
            f"{results.percent(dense)}; by the weights left (%), test accuracy (%) at the step of "
            f"best validation accuracy, mean{' ± deviation' if few else ''} over replicates"
        ),
        columns=columns,
        rows=rows,
        footline=(
            f"Within {config.tolerance:g} points of dense down to: {held}. "
            f"{summary['seconds']:.0f} s in all, peak memory {peak:.2f} GB"
        ),
        command=run.again(PROGRAM, config.out),
        pictures={
            PICTURE: "Means over replicates; bands from the worst to the best, the grey one of the "
            "dense networks.",
            LAYERS: "Weights kept in each layer after the last phase: mean and standard deviation "
            "over replicates. Controls keep as many as ltr.",
        },
        layers=layers,
        models=[f"{run.MODEL}/{arm}" for arm in config.method],
        environment=summary["environment"],
    )


if __name__ == "__main__":
    main()
