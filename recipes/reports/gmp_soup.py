"""The names of the arms, the numbers and the figure of `recipes.gmp_soup`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.common import checkpoints, dead, folder, lanes, report
from recipes.common.figures.style import Curve, band, canvas, looks
from recipes.common.lanes import Network
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.gmp_soup import Study

SOUP, ALONE, DENSE = "soup", "alone", "dense soup"
ARMS = (SOUP, ALONE, DENSE)
PICTURE = "plots/averages.png"

Records = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl: each prune, and the end


def write(
    s: Study, ends: Network, records: Records, seconds: float, chance: float
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    config, each = s.config, s.config.seeds * s.config.children
    saved = {arm: lanes.part(ends, i * each, (i + 1) * each) for i, arm in enumerate(ARMS)}
    for arm, network in saved.items():
        path = config.out / folder.MODEL / f"{arm.replace(' ', '-')}-children"
        checkpoints.save_model(path, *network)
    arms = {}
    for arm in ARMS:
        empty = dead.empty_layers(lanes.every(saved[arm].masks, config.children))
        last, children = records[-1][arm], np.asarray(records[-1][arm]["children"])
        average = np.asarray(last["average"])
        arms[arm] = {
            "test_accuracy": {
                "average": report.accuracy(average, chance, empty),
                "mean child": report.accuracy(children.mean(1), chance, empty),
            },
            "average_minus_mean_child": report.over_seeds(average - children.mean(1)),
            "kept_weights": last["kept_weights"],
            "kept_by_average": last["kept_by_average"],
        }
    summary = report.summary(
        config,
        "soups of children of gradual pruning, averaged at the prunes",
        children=config.children,
        vary=config.vary,
        steps=s.steps,
        prunes=s.at,
        sparsities=s.sparsities,
        chance=chance,
        arms=arms,
        at_prunes=[_at_prune(record) for record in records[:-1]],
        seconds=round(seconds, 2),
    )
    return report.finish(config, write_up(s, records, summary), summary)


def _at_prune(record: Mapping[str, Any]) -> dict[str, Any]:
    """Just before a prune: by arm the accuracy of the average, and of the mean child."""
    told: dict[str, Any] = {"step": record["step"]}
    for arm in ARMS:
        children = np.asarray(record[arm]["children"]).mean(1)
        told[arm] = {
            "average": report.over_seeds(record[arm]["average"]),
            "mean_child": report.over_seeds(children),
        }
    return told


def write_up(s: Study, records: Records, summary: Mapping[str, Any]) -> Writeup:
    """The result, for people: a row for each arm; and the averages just before each prune."""
    config, arms = s.config, summary["arms"]

    def row(arm: str) -> list[str]:
        told, gain = arms[arm]["test_accuracy"], arms[arm]["average_minus_mean_child"]
        percent = lambda kind: report.percent(told[kind], unit="")
        cells = [percent(kind) for kind in ("average", "mean child")]
        kept = [np.mean(arms[arm][key]) for key in ("kept_by_average", "kept_weights")]
        return [arm, *cells, report.points(gain), *(f"{n:,.0f}" for n in kept)]

    def prune(i: int, told: Mapping[str, Any]) -> list[str]:
        cells = [
            f"{100 * told[arm]['average']['mean']:.2f}, {100 * told[arm]['mean_child']['mean']:.2f}"
            for arm in ARMS
        ]
        return [f"step {told['step']:,} to {100 * s.sparsities[i]:.3g} %", *cells]

    differ = "order of data" if config.vary == "order" else "first weights and order of data"
    return Writeup(
        title="Soups during gradual pruning",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds x {config.children} "
            f"children that differ in {differ}, {s.steps:,} steps, {100 * config.sparsity:g} % "
            "sparse: test accuracy at the end in %, mean ± standard deviation over seeds"
        ),
        columns=["average", "mean child", "points", "kept", "by a child"],
        rows=[row(arm) for arm in ARMS],
        more={
            "Just before each prune, in %: the average of the children, and the mean child": (
                ARMS,
                [prune(i, told) for i, told in enumerate(summary["at_prunes"])],
            )
        },
        pictures={
            PICTURE: Picture(
                picture(s, records),
                "Test accuracy just before each prune and at the end: the mean child, and the "
                "average of the children. Means over seeds; bands from the worst seed to the best.",
            )
        },
        layers={},
        models=[f"{folder.MODEL}/{arm.replace(' ', '-')}-children" for arm in ARMS],
        notes="points: average minus mean child; kept: weights, by the average and by a child",
        saved="All children, those of a seed side by side, are in {models}.",
    )


def picture(s: Study, records: Records) -> bytes:
    """PNG of a panel for each arm."""
    steps = [record["step"] for record in records]
    drawn = looks(["child", "average"])
    with canvas(8.5, 2.7) as figure:
        every = figure.subplots(1, len(ARMS), sharey=True)
        for axes, arm in zip(every, ARMS, strict=True):
            children = np.array([np.mean(record[arm]["children"], 1) for record in records])
            average = np.array([record[arm]["average"] for record in records])
            curves: dict[str, Curve] = {"child": (steps, children), "average": (steps, average)}
            for kind, curve in curves.items():
                name = "mean child" if kind == "child" else kind
                band(axes, curve, name, drawn[kind], points=True)
            axes.set(title=f"{arm.capitalize()}: test accuracy (%)", xlabel="Step")
        figure.key(every[0])
    return figure.png
