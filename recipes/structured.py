"""Structured pruning by scores of neurons: `python -m recipes.structured --help`.

Trains a few networks and finds their groups of neurons once. Then round by round each arm scores
the neurons of its networks, prunes the lowest until a share of the FLOPs is left, and trains on;
beside them the dense networks train as long. At each target the neurons are really removed: the
table shows weights, FLOPs, measured latency and accuracy before and after. Writes a folder that
reproduces itself.

References: Fang et al., 2023 (DepGraph); Li et al., 2017 (L1 norms); Molchanov et al., 2019
(Taylor); Liu et al., 2017 (scales of batch norm); He et al., 2019 (geometric median).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro

import jaxprune as jp
from jaxprune.structured.compact import Compact
from recipes.common import (
    before_after,
    cli,
    compacted,
    data,
    dead,
    flops_left,
    latency,
    layer_widths,
    masked_networks,
    models,
    neuron_scores,
    phases,
    plots,
    pruning_rounds,
    results,
    run,
    settings,
    training,
)
from recipes.common.errors import RecipeError
from recipes.common.journal import journal
from recipes.common.masked_networks import Study
from recipes.common.pruning_rounds import DENSE, Records
from recipes.common.writeup import Writeup, finish

PROGRAM = "python -m recipes.structured"
FLOPS, WIDTHS = "plots/flops.png", "plots/widths.png"
AS_LONG = "dense, as long"


@dataclass(frozen=True)
class Config(settings.Settings):
    """Structured pruning by scores of neurons, several seeds and scores in one program."""

    out: Path = Path("runs/structured")
    """The folder to write to."""
    width: float = 1.0
    """What multiplies the sizes of the hidden layers."""
    norm: Annotated[str, cli.choice(models.NORMS)] = "batch"
    """Normalization of the convolutional networks; group ties channels of its groups together."""
    seeds: int = 3
    """How many networks to prune, each with its own initial weights."""
    score: Annotated[tuple[str, ...], cli.several(neuron_scores.NAMES)] = ("l1", "taylor", "random")
    """What a neuron is worth: one or several, side by side. scale needs a network with norms."""
    scope: Annotated[str, cli.choice(neuron_scores.SCOPES)] = "global"
    """What a neuron is ranked among: all, its own group, or the groups on layers of like kinds."""
    flops: Annotated[tuple[float, ...], cli.listed("FLOAT")] = (0.5, 0.25)
    """The shares of the dense FLOPs to prune to, in (0, 1); each goes on from the one before."""
    rounds: int = 2
    """Rounds of pruning and training on from each share to the next."""
    retrain: float = 0.2
    """How long each round trains, as a fraction of the steps of training."""
    retrain_rate: Annotated[float | None, cli.default_is("FLOAT", "that of training")] = None
    """The learning rate of a round at its highest; it follows --schedule anew."""
    weight_decay: float = 0.0
    """What is added to the gradient, times the weights."""
    round_to: int = 1
    """Kept neurons of a layer are a multiple of it."""
    examples: int = 1024
    """taylor: training examples that the gradient is taken on."""
    timings: int = 9
    """How often each forward pass is timed; 0 for never."""
    log_every: Annotated[int | None, cli.default_is("INT", "mlp, lenet 20, conv 5, resnet20 1")] = (
        None
    )
    """Steps between looks at the progress, and at Ctrl-C."""
    evaluations: Annotated[int, tyro.conf.Suppress] = 1  # networks are tested after each round


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, structured_pruning, PROGRAM, argv)


def structured_pruning(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    check(config)
    run.check_out(config.out, config.overwrite, config.resume)
    dataset = data.load(config.dataset, config.data_dir, config.train_examples)
    study = study_of(config, dataset)
    masked_networks.check_budget(study)
    with journal(config, PROGRAM) as kept:
        records = pruning_rounds.all_rounds(study, dataset, kept, config.out)
    summary = summarise(config, study, records, dataset)
    finish(config.out, write_up(config, study, summary), summary, pictures(study, records, summary))
    return summary


def check(config: Config) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    settings.check(config)
    cli.some_of("--score", config.score, neuron_scores.NAMES)
    cli.one_of("--scope", config.scope, neuron_scores.SCOPES)
    cli.some_of("--flops", config.flops)
    for share in config.flops:
        cli.in_range("--flops", share, 0, 1, "()")
    if list(config.flops) != sorted(config.flops, reverse=True):
        seen = " ".join(f"{share:g}" for share in config.flops)
        raise RecipeError(f"--flops must fall, for what is pruned stays pruned; got {seen}")
    cli.in_range("--width", config.width, 0, 100, "(]")
    cli.in_range("--retrain", config.retrain, 0, 100, "(]")
    if config.retrain_rate is not None:
        cli.in_range("--retrain-rate", config.retrain_rate, 0, math.inf, "()")
    cli.in_range("--weight-decay", config.weight_decay, 0, math.inf, "[)")
    cli.at_least("--rounds", config.rounds, 1)
    cli.at_least("--round-to", config.round_to, 1)
    cli.at_least("--examples", config.examples, 1)
    cli.at_least("--timings", config.timings, 0)


def study_of(config: Config, dataset: data.Dataset) -> Study:
    """The programs of all rounds; raises `RecipeError` for what can't be scored."""
    network: dict[str, Any] = {
        "name": config.model,
        "classes": dataset.classes,
        "norm": config.norm,
        "width": config.width,
    }
    module = models.model(**network)
    plan = settings.plan_of(config, len(dataset.train.labels))
    structure = compacted.structure_of(module, dataset.train.images.shape[1:])
    scored_on = data.Split(*(x[: config.examples] for x in dataset.train))
    more = max(round(config.retrain * plan.steps), 1)
    longest = max(plan.steps, more)
    rate = config.learning_rate if config.retrain_rate is None else config.retrain_rate
    again = settings.SCHEDULES[config.schedule](rate, more)
    decay = jnp.float32(config.weight_decay)
    lane = lambda schedule, steps: phases.Lane(phases.rates(schedule, steps, longest), decay)
    return Study(
        network=network,
        module=module,
        structure=structure,
        program=phases.phases(
            module,
            settings.OPTIMIZERS[config.optimizer],
            dataset.train,
            config.batch_size,
            plan.chunk_steps,
            jp.group_masks(structure, {})["params"],
        ),
        masks=masked_networks.masks_of(structure),
        keys=training.seed_keys(config.seed, config.seeds),
        scores={
            name: neuron_scores.score(name, structure, module, scored_on, config.batch_size)
            for name in config.score
        },
        allocation=neuron_scores.allocation(config.scope, structure),
        round_to=config.round_to,
        targets=config.flops,
        shares=pruning_rounds.shares(config.flops, config.rounds),
        steps=plan.steps,
        more=more,
        rates=lane(settings.rates(config, plan.steps), plan.steps),
        more_rates=lane(again, more),
    )


def summarise(config: Config, s: Study, records: Records, dataset: data.Dataset) -> dict[str, Any]:
    """The content of summary.json; measures latencies."""
    began = time.perf_counter()
    whole = before_after.size_of(s.structure, {})
    sizes = {DENSE: [whole] * config.seeds, AS_LONG: [whole] * config.seeds}
    accuracy = {
        DENSE: np.array(records[0][DENSE]["test_accuracy"]),
        AS_LONG: np.array(records[-1][DENSE]["test_accuracy"]),
    }
    removed = {}
    for record in (r for r in records if r.get("flops_asked") in s.targets):
        for score in s.scores:
            own, name = record[score], row_name(score, record["flops_asked"])
            measured = zip(own["weights"], own["flops"], own["widths"], strict=True)
            sizes[name] = [before_after.Size(*size) for size in measured]
            accuracy[name] = np.array(own["compacted_accuracy"])
            removed[name] = {key: own[key] for key in ("largest_difference", "answers_that_differ")}
    times = timed(config, s, dataset, records) if config.timings else {}
    chance = dead.chance(dataset.test.labels)
    return {
        "recipe": "structured",
        "studies": "test accuracy and speed after structured pruning, beside dense training",
        "dataset": config.dataset,
        "model": config.model,
        "seeds": config.seeds,
        "steps": s.steps,
        "steps_of_a_round": s.more,
        "scores": list(config.score),
        "scope": config.scope,
        "flops": list(config.flops),
        "chance": chance,
        "networks": before_after.numbers(sizes, accuracy, times, chance),
        "masked_and_compacted": removed,
        "latency": times,
        "seconds": round(records[-1]["seconds"] + time.perf_counter() - began, 2),
        "peak_memory_bytes": results.peak_memory_bytes(),
        "environment": results.environment(),
    }


def row_name(score: str, share: float) -> str:
    """That of a score's networks at a target."""
    return f"{score} {100 * share:g} %"


def timed(
    config: Config, s: Study, dataset: data.Dataset, records: Records
) -> dict[str, dict[str, Any]]:
    """Latencies of the first seed's networks, dense and compacted."""
    image = dataset.train.images.shape[1:]
    variables = training.seed_of(masked_networks.untrained(s).variables, 0)
    networks = {DENSE: Compact(variables, s.module.apply)}
    for share in s.targets:
        for score in s.scores:
            path = config.out / pruning_rounds.model_path(score, share)
            networks[row_name(score, share)] = compacted.load(path)
    return latency.latencies(networks, image, rounds=config.timings, seed=config.seed)


def pictures(s: Study, records: Records, summary: dict[str, Any]) -> dict[str, bytes]:
    """The figures, by their path below the folder of the run."""
    dense = np.array(records[-1][DENSE]["test_accuracy"])
    whole = before_after.size_of(s.structure, {})
    at_once, trained_on = (
        {score: curve(records[1:], score, key, whole.flops) for score in s.scores}
        for key in ("before_training_on", "test_accuracy")
    )
    panels = {}
    for share in s.targets:
        of = {score: summary["networks"][row_name(score, share)]["widths"] for score in s.scores}
        panels[f"{100 * share:g} % of the FLOPs"] = {
            score: {group: np.array([own[group] for own in widths]) for group in whole.widths}
            for score, widths in of.items()
        }
    drawn = plots.looks([DENSE, *s.scores])
    return {
        FLOPS: flops_left.picture(at_once, trained_on, dense, s.shares),
        WIDTHS: layer_widths.picture(whole.widths, panels, drawn),
    }


def curve(records: Records, score: str, key: str, flops: int) -> plots.Curve:
    """What is left of so many FLOPs after each round, and what the networks came to."""
    own = [record[score] for record in records]
    left = [float(np.mean(numbers["flops"])) / flops for numbers in own]
    return left, np.array([numbers[key] for numbers in own])


def write_up(config: Config, s: Study, summary: dict[str, Any]) -> Writeup:
    """The result, for people."""
    columns, rows = before_after.table(summary["networks"], summary["latency"])
    removed = summary["masked_and_compacted"].values()
    largest = max(max(own["largest_difference"]) for own in removed)
    differ = sum(sum(own["answers_that_differ"]) for own in removed)
    peak = summary["peak_memory_bytes"] / 1e9
    return Writeup(
        title="Structured pruning",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {s.steps:,} steps, then "
            f"{len(s.shares)} rounds of {s.more:,}; scope of ranking: {config.scope}. Mean ± "
            "standard deviation over seeds of the compacted networks"
            + (f", and {before_after.READING}" if summary["latency"] else "")
        ),
        columns=columns,
        rows=rows,
        footline=(
            f"Masked and compacted networks: logits differ by at most {largest:.1e}, {differ} "
            f"answers on test data do. {summary['seconds']:.0f} s in all, peak memory {peak:.2f} GB"
        ),
        command=run.again(PROGRAM, config.out),
        pictures={
            FLOPS: "Test accuracy against the FLOPs that are left, right after each pruning and "
            "after training on: means over seeds; bands from the worst seed to the best. Dashed: "
            "dense networks that trained as long as all rounds.",
            WIDTHS: "Neurons of each group before (grey) and after: means over seeds, and the "
            "range from the smallest to the largest.",
        },
        layers={"all networks": repr(s.structure)},
        models=[
            pruning_rounds.model_path(score, share) for share in s.targets for score in s.scores
        ],
        environment=summary["environment"],
        of_layers="The neurons that can be pruned, and what goes with them",
        saved=(
            "The compacted networks of all seeds are in {models}: read one with "
            "`recipes.common.compacted.load(path, seed)`."
        ),
    )


if __name__ == "__main__":
    main()
