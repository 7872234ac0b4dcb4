"""The numbers, the report and the figure of `recipes.intrinsic`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from recipes.common import dead, folder, report
from recipes.common.figures import left, style
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.intrinsic import Study

DIMENSIONS = "plots/dimensions.png"
SEED_BYTES = 8  # the first weights and the directions are functions of it


def summary(
    study: Study, records: Sequence[Mapping[str, Any]], params: int, seconds: float
) -> dict[str, Any]:
    """What summary.json holds. `records` are the lines of metrics.jsonl: dense, then each d."""
    config, chance = study.config, dead.chance(study.dataset.test.labels)
    arms = {
        "dense" if record["d"] is None else f"d-{record['d']}": {
            "d": record["d"],
            "bytes": 4 * params if record["d"] is None else bytes_of(record["d"]),
            "test_accuracy": report.accuracy(record["test_accuracy"], chance),
        }
        for record in records
    }
    dims = sorted(config.dims)
    reached = np.array([arms[f"d-{d}"]["test_accuracy"]["per_seed"] for d in dims])
    goals = config.share * np.array(arms["dense"]["test_accuracy"]["per_seed"])
    enough = [d for d, row in zip(dims, reached, strict=True) if row.mean() >= goals.mean()]
    d = min(enough, default=dims[-1])
    return report.summary(
        config,
        "test accuracy in random subspaces, and the intrinsic dimension",
        steps=study.steps,
        chance=chance,
        params=params,
        share=config.share,
        arms=arms,
        d_int=[first_at(dims, reached[:, i], goal) for i, goal in enumerate(goals)],
        compressed={"d": d, "bytes": bytes_of(d), "reaches": bool(enough)},
        seconds=seconds,
    )


def bytes_of(d: int) -> int:
    """Of a network: d numbers of 32 bits, and a seed."""
    return 4 * d + SEED_BYTES


def first_at(dims: Sequence[int], accuracy: np.ndarray, goal: float) -> float | None:
    """The d at which the accuracy first reaches the goal, between two dims by their logarithms.

    The first of all dims where it is enough, None where no one is.

    >>> first_at([10, 1000], np.array([0.5, 0.9]), 0.7)
    100.0
    """
    for i, value in enumerate(accuracy):
        if value >= goal:
            if i == 0:
                return float(dims[0])
            part = (goal - accuracy[i - 1]) / (value - accuracy[i - 1])
            low, high = np.log(dims[i - 1]), np.log(dims[i])
            return round(float(np.exp(low + part * (high - low))), 6)
    return None


def publish(study: Study, summary: dict[str, Any]) -> dict[str, Any]:
    """Writes the folder of the run; returns the summary."""
    return report.finish(study.config, write_up(study, summary), summary)


def write_up(study: Study, summary: Mapping[str, Any]) -> Writeup:
    """The result, for people: a row for each number of dimensions."""
    config, arms = study.config, summary["arms"]
    dense = arms["dense"]
    name = f"d_int{100 * config.share:.3g}"

    def row(name: str, own: Mapping[str, Any]) -> list[str]:
        share = np.divide(*(x["test_accuracy"]["per_seed"] for x in (own, dense)))
        return [
            name if own["d"] is None else f"d = {own['d']:,}",
            report.percent(own["test_accuracy"]),
            f"{100 * share.mean():.1f} %",
            f"{own['bytes']:,}",
            f"{dense['bytes'] / own['bytes']:,.0f}",
        ]

    return Writeup(
        title="Intrinsic dimension",
        headline=(
            f"{config.model} on {config.dataset}, {summary['params']:,} params, {config.seeds} "
            f"seeds, {study.steps:,} steps: mean ± standard deviation over seeds"
        ),
        columns=["test accuracy", "of dense", "bytes", "times smaller"],
        rows=[row(*arm) for arm in arms.items()],
        pictures={
            DIMENSIONS: Picture(
                picture(summary, name),
                "Test accuracy of the last step over the dimension of the subspace: mean over "
                f"seeds; the band from the worst seed to the best. A vertical line: {name} of a "
                f"seed, where it reaches {100 * config.share:g} % of its dense accuracy.",
            )
        },
        layers={},
        models=[f"{folder.MODEL}/{arm}" for arm in arms],
        notes=f"{name}: {in_words(summary['d_int'], config.dims)}. {smallest(summary)}",
        saved="The networks, all seeds stacked, are in {models}. compressed.npz has the same "
        f"networks of d = {summary['compressed']['d']:,} as d numbers and a seed.",
    )


def in_words(found: Sequence[float | None], dims: Sequence[int]) -> str:
    """The intrinsic dimension of all seeds."""
    reached = [d for d in found if d is not None]
    if len(reached) < len(found):
        return f"above {max(dims):,} in {len(found) - len(reached)} of {len(found)} seeds"
    if all(d == min(dims) for d in reached):
        return f"at most {min(dims):,}"
    deviation = f" ± {np.std(reached, ddof=1):,.0f}" if len(reached) > 1 else ""
    return f"{np.mean(reached):,.0f}{deviation}"


def smallest(summary: Mapping[str, Any]) -> str:
    """The compressed network, in words."""
    of, whole = summary["compressed"], 4 * summary["params"]
    reaches = "the smallest d that reaches it" if of["reaches"] else "the largest d, too small"
    return (
        f"A network of d = {of['d']:,} ({reaches}) is {of['d']:,} numbers and a seed, "
        f"{of['bytes']:,} bytes in place of {whole:,}"
    )


def picture(summary: Mapping[str, Any], name: str) -> bytes:
    """PNG: accuracy over d, that of plain training, and the share of it."""
    arms = [own for own in summary["arms"].values() if own["d"] is not None]
    arms = sorted(arms, key=lambda own: own["d"])
    dense = np.array(summary["arms"]["dense"]["test_accuracy"]["per_seed"])
    drawn = style.looks(["dense", "subspace"])
    with style.canvas(7.0, 3.2) as figure:
        axes = figure.subplots()
        left.dense_line(axes, dense, drawn["dense"])
        goal, look = 100 * summary["share"] * dense.mean(), drawn["subspace"]
        label = f"{100 * summary['share']:g} % of dense"
        axes.axhline(goal, color="#888888", linewidth=1, linestyle=":", label=label)
        values = np.array([own["test_accuracy"]["per_seed"] for own in arms])
        style.band(axes, ([own["d"] for own in arms], values), "subspace", look, points=True)
        for i, d in enumerate(d for d in summary["d_int"] if d is not None):
            axes.axvline(d, color=look.color, linewidth=0.8, label=None if i else name)
        axes.set(title="Test accuracy (%)", xlabel="Dimension d of the subspace", xscale="log")
        axes.xaxis.set_major_locator(FixedLocator([own["d"] for own in arms]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda d, _: f"{d:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        figure.key(axes)
    return figure.png
