"""The numbers, the report and the figure of `recipes.stability`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import jaxprune as jp
from recipes.common import checkpoints, dead, folder, measures, report
from recipes.common.figures import pairs
from recipes.common.figures.pairs import Forks
from recipes.common.lanes import Network
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.stability import Config

PICTURE = "plots/stability.png"
ARMS = ("dense", "sparse")
QUANTITIES = ("error", "loss")

Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a fork


def write(
    config: Config,
    end: Network,
    records: Records,
    steps: int,
    rule: str | None,
    seconds: float,
    chance: float,
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds.

    `end` are the trunks with the masks of the sparse children.
    """
    kept, weights = report.kept_weights(end.masks)
    empty = {"dense": {}, "sparse": dead.empty_layers(end.masks)}
    pruned = end._replace(params=jp.apply_masks(end.params, end.masks))
    checkpoints.save_model(config.out / folder.MODEL, *pruned)
    summary = report.summary(
        config,
        "instability to SGD noise against the step of the fork, dense and pruned",
        children=config.children,
        points=config.points,
        steps=steps,
        mask=config.mask,
        sparsity=float(np.mean((weights - kept) / weights)),
        threshold_points=config.threshold,
        running_statistics=rule,
        seconds=round(seconds, 2),
        chance=chance,
        **{
            arm: [of_fork(record, arm, config.children, chance, empty[arm]) for record in records]
            for arm in ARMS
        },
    )
    return report.finish(config, write_up(config, pruned, records, summary), summary)


def of_fork(
    record: dict[str, Any], arm: str, children: int, chance: float, empty: dict[str, int]
) -> dict[str, Any]:
    """The numbers of an arm at a fork."""
    accuracy = 1 - np.asarray(record[arm]["test_error"])  # (seeds, children)
    at_chance = bool((accuracy <= chance).any())
    heights = [f"{name}_{what}" for name in QUANTITIES for what in ("instability", "barrier")]
    return {
        "step": record["step"],
        "test_accuracy": report.accuracy(accuracy.mean(1), chance, empty),
        **{
            height: measures.over_siblings(record[arm][height], children, at_chance)
            for height in heights
        },
    }


def picture(config: Config, records: Records, summary: dict[str, Any]) -> bytes:
    """PNG of the instability of each fork's pairs; none (nan) with a child at chance."""

    def drawn(arm: str, i: int) -> np.ndarray:
        values = np.ravel(records[i][arm]["error_instability"])
        at_chance = summary[arm][i]["error_instability"]["mean"] is None
        return np.full_like(values, np.nan) if at_chance else values

    arms = {
        arm: Forks(
            [drawn(arm, i) for i in range(len(records))],
            [1 - np.ravel(record[arm]["test_error"]) for record in records],
        )
        for arm in ARMS
    }
    return pairs.over_forks([record["step"] for record in records], arms, config.threshold)


def write_up(config: Config, pruned: Network, records: Records, summary: dict[str, Any]) -> Writeup:
    """The result, for people: a row for each fork."""
    rows = [
        (
            f"{fork['step']:,}, {arm}",
            report.plus_minus(fork["error_instability"], 2, 100),
            report.plus_minus(fork["error_barrier"], 2, 100),
            report.plus_minus(fork["loss_instability"], 3),
            report.percent(fork["test_accuracy"]),
        )
        for pair in zip(summary["dense"], summary["sparse"], strict=True)
        for arm, fork in zip(ARMS, pair, strict=True)
    ]
    rule = summary["running_statistics"]
    what = "seeds" if config.seeds > 1 else "children, by the jackknife"
    return Writeup(
        title="Stability to the noise of SGD",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds x {config.children} "
            f"children a fork, {summary['steps']:,} steps, sparsity "
            f"{100 * summary['sparsity']:.4g} % ({config.mask}), {config.points} points a path on "
            f"test data{measures.in_words(rule)}, by the step of the fork: instability I and "
            f"barrier B, of the error in points, with standard error over {what}; accuracy with "
            "standard deviation over seeds"
        ),
        columns=("error I", "error B", "loss I", "test accuracy"),
        rows=rows,
        pictures={
            PICTURE: Picture(
                picture(config, records, summary),
                "Each dot is a pair of children of one network, or a child; lines join the means. "
                "Below the dashed line training is stable; with a child at chance there is no dot. "
                "The forks are evenly spaced, not to scale.",
            )
        },
        layers={"sparse": report.layers_of_first(pruned)},
        models=[folder.MODEL],
    )
