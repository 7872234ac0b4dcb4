"""What `recipes.structured` tells: its numbers, its report and its figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.structured import Compact
from recipes.common import dead, folder, lanes, report, small, timing
from recipes.common.data import Dataset
from recipes.common.figures import layers, style
from recipes.common.figures.left import flops_left
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.structured import Config, Study

FLOPS, WIDTHS = "plots/flops.png", "plots/widths.png"
DENSE, AS_LONG = "dense", "dense, as long"  # the arm that trains on and is not pruned

Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a round


def write(config: Config, s: Study, records: Records, dataset: Dataset) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    summary = summarize(config, s, records, dataset)
    return report.finish(config, write_up(config, s, records, summary), summary)


def model_path(arm: str, share: float) -> str:
    """Where the compacted networks of a score are, below the folder of the run."""
    return f"{folder.MODEL}/{arm}-{100 * share:g}"


def summarize(config: Config, s: Study, records: Records, dataset: Dataset) -> dict[str, Any]:
    """The content of summary.json; measures latencies."""
    began = time.perf_counter()
    dense = [small.size_of(s.structure, {})] * config.seeds
    sizes = {DENSE: dense, AS_LONG: dense}
    accuracy = {
        DENSE: np.array(records[0][DENSE]["test_accuracy"]),
        AS_LONG: np.array(records[-1][DENSE]["test_accuracy"]),
    }
    removed = {}
    for record in (r for r in records if r.get("flops_asked") in s.targets):
        for score in s.scores:
            arm, name = record[score], row_name(score, record["flops_asked"])
            measured = zip(arm["weights"], arm["flops"], arm["widths"], strict=True)
            sizes[name] = [small.Size(*size) for size in measured]
            accuracy[name] = np.array(arm["compacted_accuracy"])
            removed[name] = {key: arm[key] for key in ("largest_difference", "answers_that_differ")}
    times = timed(config, s, dataset, records) if config.timings else {}
    return report.summary(
        config,
        "test accuracy and speed after structured pruning, beside dense training",
        steps=s.steps,
        steps_of_a_round=s.more,
        scores=list(config.score),
        scope=config.scope,
        flops=list(config.flops),
        **small.numbers(sizes, accuracy, removed, times, dead.chance(dataset.test.labels)),
        seconds=round(records[-1]["seconds"] + time.perf_counter() - began, 2),
    )


def sizes(s: Study, kept: Sequence[Any]) -> dict[str, list[Any]]:
    """Weights, FLOPs and widths of the networks of an arm, from the kept neurons of each."""
    seeds = [small.size_of(s.structure, own)._asdict() for own in kept]
    return {key: [size[key] for size in seeds] for key in small.Size._fields}


def row_name(score: str, share: float) -> str:
    """The name of a score's networks at a target."""
    return f"{score} {100 * share:g} %"


def timed(
    config: Config, s: Study, dataset: Dataset, records: Records
) -> dict[str, dict[str, Any]]:
    """Latencies of the first seed's networks, dense and compacted."""
    image = dataset.train.images.shape[1:]
    variables = lanes.lane_of(lanes.initial(s.program, s.keys).variables, 0)
    networks = {DENSE: Compact(variables, s.program.module.apply)}
    for share in s.targets:
        for score in s.scores:
            path = config.out / model_path(score, share)
            networks[row_name(score, share)] = small.load(path)
    return timing.latencies(networks, image, rounds=config.timings, seed=config.seed)


def pictures(s: Study, records: Records, summary: dict[str, Any]) -> dict[str, Picture]:
    """The figures, by their path below the folder of the run."""
    dense = np.array(records[-1][DENSE]["test_accuracy"])
    before = small.size_of(s.structure, {})
    at_once, trained_on = (
        {score: curve(records[1:], score, key, before.flops) for score in s.scores}
        for key in ("before_training_on", "test_accuracy")
    )
    panels = {
        f"{100 * share:g} % of the FLOPs": {
            score: small.widths(summary["networks"][row_name(score, share)]) for score in s.scores
        }
        for share in s.targets
    }
    drawn = style.looks([DENSE, *s.scores])
    return {
        FLOPS: Picture(
            flops_left(at_once, trained_on, dense, s.shares),
            "Test accuracy against the FLOPs that are left, right after each pruning and after "
            "training on: means over seeds; bands from the worst seed to the best. Dashed: dense "
            "networks that trained as long as all rounds.",
        ),
        WIDTHS: Picture(
            layers.picture(before.widths, panels, drawn),
            "Neurons of each group before (grey) and after: means over seeds, and the range from "
            "the smallest to the largest.",
        ),
    }


def curve(records: Records, score: str, key: str, flops: int) -> style.Curve:
    """The share of the FLOPs that is left after each round, and accuracies (rounds, seeds)."""
    rounds = [record[score] for record in records]
    left = [float(np.mean(arm["flops"])) / flops for arm in rounds]
    return left, np.array([arm[key] for arm in rounds])


def write_up(config: Config, s: Study, records: Records, summary: dict[str, Any]) -> Writeup:
    """The result, for people."""
    columns, rows = small.table(summary["networks"], summary["latency"])
    return Writeup(
        title="Structured pruning",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {s.steps:,} steps, then "
            f"{len(s.shares)} rounds of {s.more:,}; scope of ranking: {config.scope}. Mean ± "
            "standard deviation over seeds of the compacted networks"
            + (f", and {small.READING}" if summary["latency"] else "")
        ),
        columns=columns,
        rows=rows,
        notes=f"Masked and compacted networks: {small.difference(summary)}",
        pictures=pictures(s, records, summary),
        layers={"all networks": repr(s.structure)},
        models=[model_path(score, share) for share in s.targets for score in s.scores],
        of_layers="The neurons that can be pruned, and what goes with them",
        saved=(
            "The compacted networks of all seeds are in {models}: read one with "
            "`recipes.common.small.load(path, seed)`."
        ),
    )
