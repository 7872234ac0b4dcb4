"""What `recipes.tickets` tells: its numbers, its report and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recipes.common import checkpoints, cli, dead, folder, lanes, report
from recipes.common.figures import left, style
from recipes.common.lanes import Network
from recipes.common.report import Writeup, finish

if TYPE_CHECKING:
    from recipes.tickets import Config, Study

REWINDING = ("ltr", "sap")  # the weights go back to those of the rewind step
RETRAINING = ("lrr", "ft", "slr", "clr", "llr", "allr")  # the weights stay, by these rates
METHODS = ("ltr", *RETRAINING, "sap")
CONTROLS = ("reinit", "random")  # of ltr
PICTURE, LAYERS = "plots/tickets.png", "plots/layers.png"
MOST_WITH_SPREAD = 4  # arms: there is no room for more on 80 columns

Records = Sequence[dict[str, Any]]  # the lines of metrics.jsonl, one a phase


class End(NamedTuple):
    """What an arm came to; the early networks are those of the step of best validation accuracy."""

    network: Network
    step: np.ndarray  # of the early network (replicates,)
    early: Network
    validation: np.ndarray  # accuracy of the early network (replicates,)


def write(
    config: Config,
    study: Study,
    records: Records,
    ends: Mapping[str, End],
    held: int,
    seconds: float,
    chance: float,
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    summary = summarize(config, study, records, ends, held, seconds, chance)
    save(config, records, ends, summary)
    return summary


def summarize(
    config: Config,
    study: Study,
    records: Records,
    ends: Mapping[str, End],
    held: int,
    seconds: float,
    chance: float,
) -> dict[str, Any]:
    """The content of summary.json."""
    _, weights = report.kept_weights(next(iter(ends.values())).network.masks)

    def of(numbers: Mapping[str, Any], phase: int) -> dict[str, Any]:
        keys = ("end_test_accuracy", "validation_accuracy", "early_step")
        return {
            "phase": phase,
            "weights_left": float(np.mean(numbers["kept_weights"]) / weights),
            "kept_weights": numbers["kept_weights"],
            "test_accuracy": report.accuracy(
                numbers["test_accuracy"], chance, numbers["empty_layers"]
            ),
            **{key: report.over_seeds(numbers[key]) for key in keys},
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
        "peak_memory_bytes": report.peak_memory_bytes(),
        "environment": folder.environment(),
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
        checkpoints.save_model(config.out / folder.MODEL / arm, *end.network)
    weights = summary["prunable_weights"]
    curves = {
        arm: (
            [np.mean(r[arm]["kept_weights"]) / weights for r in records[1:]],
            np.array([r[arm]["test_accuracy"] for r in records[1:]]),
        )
        for arm in config.method
    }
    methods = [arm for arm in config.method if arm in METHODS]
    density = {arm: report.layer_density(ends[arm].network.masks) for arm in methods}
    drawn = style.looks(["dense", *config.method])
    figures = {
        PICTURE: left.weights_left(curves, np.array(records[0]["dense"]["test_accuracy"])),
        LAYERS: style.layer_density(density, drawn),
    }
    layers = {}
    for arm in methods:
        params, _, masks = lanes.lane_of(ends[arm].network, 0)
        layers[arm] = report.layers(params, masks)
    finish(config.out, write_up(config, summary, layers), summary, figures)


def write_up(config: Config, summary: dict[str, Any], layers: Mapping[str, str]) -> Writeup:
    """The result, for people: a row for each phase, or with many arms for each arm."""
    arms, dense = summary["arms"], summary["dense"]["test_accuracy"]
    planned = next((arm for arm in config.method if arm != "sap"), "sap")

    points = {arm: [f"{100 * n['weights_left']:.3g}" for n in arms[arm]] for arm in arms}
    few = len(arms) <= MOST_WITH_SPREAD

    def accuracy(numbers: dict[str, Any]) -> str:
        mean, std = 100 * numbers["mean"], 100 * numbers["std"]
        return (f"{mean:.2f} ± {std:.2f}" if few else f"{mean:.1f}") + dead.mark(numbers)

    cells = {arm: [accuracy(n["test_accuracy"]) for n in arms[arm]] for arm in config.method}
    if planned != "sap" and "sap" in arms:  # it keeps as many as it will
        cells["sap keeps"] = points["sap"]
    columns, rows = list(cells), list(zip(points[planned], *cells.values(), strict=True))
    if not few:
        columns, rows = points[planned], [(arm, *row) for arm, row in cells.items()]
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
            f"{report.percent(dense)}; by the weights left (%), test accuracy (%) at the step of "
            f"best validation accuracy, mean{' ± deviation' if few else ''} over replicates"
        ),
        columns=columns,
        rows=rows,
        footline=(
            f"Within {config.tolerance:g} points of dense down to: {held}. "
            f"{summary['seconds']:.0f} s in all, peak memory {peak:.2f} GB"
        ),
        command=cli.again(config),
        pictures={
            PICTURE: "Means over replicates; bands from the worst to the best, the grey one of the "
            "dense networks.",
            LAYERS: "Weights kept in each layer after the last phase: mean and standard deviation "
            "over replicates. Controls keep as many as ltr.",
        },
        layers=layers,
        models=[f"{folder.MODEL}/{arm}" for arm in config.method],
        environment=summary["environment"],
    )
