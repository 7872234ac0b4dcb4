"""The numbers, the report and the figure of `recipes.layers`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import jaxprune as jp
from recipes.common import dead, folder, report, text
from recipes.common.figures.left import dense_line
from recipes.common.figures.style import band, canvas, looks
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.layers import Study

PICTURE = "plots/blocks.png"

Records = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl: the whole network, and tickets


def write(s: Study, records: Records, chance: float, seconds: float) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    config = s.config
    arms: dict[str, dict[str, Any]] = {}
    for cell, record in zip(s.cells, records[1:], strict=True):
        left = config.blocks - cell.removed
        arms.setdefault(cell.arm, {})[str(left)] = {
            "test_accuracy": report.accuracy(record["test_accuracy"], chance),
            "kept": record["kept"],
        }
    times: dict[int, list[float]] = {config.blocks: [records[0]["training_seconds"]]}
    for cell, record in zip(s.cells, records[1:], strict=True):
        times.setdefault(config.blocks - cell.removed, []).append(record["training_seconds"])
    dense = report.accuracy(records[0]["test_accuracy"], chance)
    summary = report.summary(
        config,
        "test accuracy of residual networks without some blocks, which scores choose",
        blocks=config.blocks,
        steps=s.steps,
        chance=chance,
        whole={"test_accuracy": dense},
        arms=arms,
        costs={str(left): cost(s, left, own) for left, own in times.items()},
        wins_down_to={
            arm: None if dead.at_chance(dense) else wins(own, dense["mean"], config.tolerance)
            for arm, own in arms.items()
        },
        seconds=round(seconds, 2),
    )
    return report.finish(config, write_up(s, summary), summary)


def cost(s: Study, left: int, seconds: Sequence[float]) -> dict[str, Any]:
    """The params, the FLOPs of one example, and the median time of a step of all seeds."""
    module, one = s.programs[left].module, s.dataset.train.images[:1]
    variables = jax.eval_shape(module.init, jax.random.key(0), one)
    flops = jp.count_flops(module.apply, variables, one)
    return {
        "params": sum(math.prod(x.shape) for x in jax.tree.leaves(variables)),
        "flops": sum(flops.leaves.values()) + flops.other,
        "step_seconds": float(np.median(seconds)),
    }


def wins(arm: Mapping[str, Any], dense: float, tolerance: float) -> int | None:
    """The fewest blocks down to which all tickets win; None where the first one loses."""
    reached = None
    for left in sorted(map(int, arm), reverse=True):
        if arm[str(left)]["test_accuracy"]["mean"] <= dense - tolerance / 100:
            break
        reached = left
    return reached


def write_up(s: Study, summary: Mapping[str, Any]) -> Writeup:
    """The result, for people: a row for each arm, a column for each number of blocks."""
    config, arms, costs = s.config, summary["arms"], summary["costs"]
    lefts = sorted((int(left) for left in costs if int(left) != config.blocks), reverse=True)
    whole, network = costs[str(config.blocks)], "a residual network"
    if config.dataset in text.DATASETS:
        network = "a decoder"

    def row(arm: str) -> list[str]:
        told = [arms[arm][str(left)]["test_accuracy"] for left in lefts]
        return [arm, *(report.percent(numbers, unit="") for numbers in told)]

    def share(key: str, name: str) -> list[str]:
        return [name, *(f"{100 * costs[str(left)][key] / whole[key]:.0f} %" for left in lefts)]

    winners = "; ".join(
        f"{arm}: {'none' if left is None else left}"
        for arm, left in summary["wins_down_to"].items()
    )
    return Writeup(
        title="Blocks as tickets",
        headline=(
            f"{network} of {config.blocks} blocks on {config.dataset}, {config.seeds} seeds, "
            f"{s.steps:,} steps: by the blocks left, test accuracy in %, mean ± standard deviation "
            f"over seeds; the whole network {report.percent(summary['whole']['test_accuracy'])}, "
            f"{whole['params']:,} params, {1e3 * whole['step_seconds']:.2f} ms a step"
        ),
        columns=[f"{left} left" for left in lefts],
        rows=[
            *map(row, arms),
            share("params", "params"),
            share("flops", "FLOPs"),
            share("step_seconds", "time of a step"),
        ],
        notes=f"Tickets win (within {config.tolerance:g} points) down to so many blocks: {winners}",
        pictures={
            PICTURE: Picture(
                picture(s, summary),
                "Test accuracy over the blocks left; the gray line is the whole network. Means "
                "over seeds; bands from the worst seed to the best.",
            )
        },
        layers={},
        models=[
            f"{folder.MODEL}/whole",
            *(f"{folder.MODEL}/{'-'.join(map(str, c))}" for c in s.cells),
        ],
        saved="The networks, all seeds stacked, are in {models}.",
    )


def picture(s: Study, summary: Mapping[str, Any]) -> bytes:
    """PNG of the accuracy of each arm over the blocks left."""
    arms = summary["arms"]
    whole = np.array(summary["whole"]["test_accuracy"]["per_seed"])
    named = {arm: arm.replace(",", "") for arm in arms}  # a method has a color, a time a dash
    drawn = looks(["whole", *named.values()])
    with canvas(6.4, 3.2) as figure:
        axes = figure.subplots()
        dense_line(axes, whole, drawn["whole"])
        for arm, own in arms.items():
            lefts = sorted(map(int, own), reverse=True)
            values = np.array([own[str(left)]["test_accuracy"]["per_seed"] for left in lefts])
            band(axes, (lefts, values), arm, drawn[named[arm]], points=True)
        axes.set(title="Test accuracy (%)", xlabel="Blocks left")
        axes.set_xlim(s.config.blocks + 0.3, 0.7)
        axes.set_xticks(range(1, s.config.blocks + 1))
        figure.key(axes)
    return figure.png
