"""What `recipes.stability` tells: its numbers, its report and its figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import jaxprune as jp
from recipes.common import checkpoints, cli, dead, folder, lanes, measures, report
from recipes.common.figures import pairs
from recipes.common.figures.pairs import Forks
from recipes.common.lanes import Network
from recipes.common.report import Writeup, finish

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
    """Writes the folder of the run; returns what summary.json holds."""
    summary = summarize(config, end.masks, records, steps, rule, seconds, chance)
    pruned = end._replace(params=jp.apply_masks(end.params, end.masks))
    params, _, masks = lanes.lane_of(pruned, 0)
    writeup = write_up(config, summary, report.layers(params, masks))
    save(config, pruned, records, summary, writeup)
    return summary


def summarize(
    config: Config,
    masks: Any,
    records: Records,
    steps: int,
    rule: str | None,
    seconds: float,
    chance: float,
) -> dict[str, Any]:
    """The content of summary.json."""
    kept, weights = report.kept_weights(masks)

    empty = {"dense": {}, "sparse": dead.empty_layers(masks)}

    def of(record: dict[str, Any], arm: str) -> dict[str, Any]:
        accuracy = 1 - np.asarray(record[arm]["test_error"])  # (seeds, children)
        at_chance = bool((accuracy <= chance).any())
        return {
            "step": record["step"],
            "test_accuracy": report.accuracy(accuracy.mean(1), chance, empty[arm]),
            **{
                f"{name}_{height}": measures.over_siblings(
                    record[arm][f"{name}_{height}"], config.children, at_chance
                )
                for name in QUANTITIES
                for height in ("instability", "barrier")
            },
        }

    return {
        "recipe": "stability",
        "studies": "instability to SGD noise against the step of the fork, dense and pruned",
        "dataset": config.dataset,
        "model": config.model,
        "seeds": config.seeds,
        "children": config.children,
        "points": config.points,
        "steps": steps,
        "mask": config.mask,
        "sparsity": float(np.mean((weights - kept) / weights)),
        "threshold_points": config.threshold,
        "running_statistics": rule,
        "seconds": round(seconds, 2),
        "chance": chance,
        **{arm: [of(record, arm) for record in records] for arm in ARMS},
        "peak_memory_bytes": report.peak_memory_bytes(),
        "environment": folder.environment(),
    }


def save(
    config: Config, pruned: Network, records: Records, summary: dict[str, Any], writeup: Writeup
) -> None:
    """Writes the pruned trunks, the plot, summary.json and report.md; prints the table."""
    checkpoints.save_model(config.out / folder.MODEL, *pruned)
    steps = [record["step"] for record in records]

    def drawn(arm: str, i: int) -> np.ndarray:
        """The instability of a fork's pairs; nan, which is not drawn, with a child at chance."""
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
    figure = pairs.over_forks(steps, arms, config.threshold)
    finish(config.out, writeup, summary, {PICTURE: figure})


def write_up(config: Config, summary: dict[str, Any], layers: str) -> Writeup:
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
    rule, peak = summary["running_statistics"], summary["peak_memory_bytes"] / 1e9
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
        footline=f"{summary['seconds']:.0f} s in all, peak memory {peak:.2f} GB",
        command=cli.again(config),
        pictures={
            PICTURE: "Each dot is a pair of children of one network, or a child; lines join the "
            "means. Below the dashed line training is stable; with a child at chance there is no "
            "dot. The "
            "forks are evenly spaced, not to scale."
        },
        layers={"sparse": layers},
        models=[folder.MODEL],
        environment=summary["environment"],
    )
