"""The numbers, the report and the figure of `recipes.plasticity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.common import checkpoints, dead, folder, report
from recipes.common.figures.style import band, canvas, looks
from recipes.common.lanes import Network
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.plasticity import Study

PICTURE = "plots/plasticity.png"
LOWEST = -30  # points: the picture leaves out what is lost for good


def write(
    s: Study, end: Network, records: Sequence[dict[str, Any]], seconds: float, chance: float
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    config = s.config
    checkpoints.save_model(config.out / folder.MODEL, *end)
    prunes = [of_prune(record, config.sparsity, chance) for record in records[:-1]]
    summary = report.summary(
        config,
        "accuracy before pruning, just after, and after training on, at several steps",
        sparsities=list(config.sparsity),
        steps=s.steps,
        recovering_steps=s.recover,
        chance=chance,
        dense={"test_accuracy": report.accuracy(records[-1]["test_accuracy"], chance)},
        prunes=prunes,
        seconds=round(seconds, 2),
    )
    return report.finish(config, write_up(s, summary), summary)


def share(rate: float) -> str:
    """A rate of pruning, in percent."""
    return f"{100 * rate:g} %"


def of_prune(record: Mapping[str, Any], rates: Sequence[float], chance: float) -> dict[str, Any]:
    """The numbers of the copies that were pruned at a step, by the rate of pruning."""
    before, names = np.asarray(record["test_accuracy"]), [share(rate) for rate in rates]
    by_rate = zip(record["just_pruned"], record["recovered"], record["empty_layers"], strict=True)
    just, after, empty = zip(*by_rate, strict=True)
    named = lambda values: dict(zip(names, values, strict=True))
    return {
        "step": record["step"],
        "before": report.over_seeds(before),
        "just_pruned": named(map(report.over_seeds, just)),
        "test_accuracy": named(
            report.accuracy(values, chance, of) for values, of in zip(after, empty, strict=True)
        ),
        "recovered_minus_before": named(
            report.over_seeds(np.asarray(values) - before) for values in after
        ),
    }


def write_up(s: Study, summary: Mapping[str, Any]) -> Writeup:
    """The result, for people: a row for each step at which copies were pruned."""
    config, prunes = s.config, summary["prunes"]
    rates = [share(rate) for rate in config.sparsity]
    columns = ["before", *rates]

    def cell(prune: Mapping[str, Any], rate: str) -> str:
        just, after = prune["just_pruned"][rate], prune["test_accuracy"][rate]
        return f"{100 * just['mean']:.1f}, {100 * after['mean']:.1f}{dead.mark(after)}"

    def gain(prune: Mapping[str, Any], rate: str) -> str:
        return f"{100 * prune['recovered_minus_before'][rate]['mean']:+.2f}"

    def rows(of: Any) -> list[list[str]]:
        before = lambda prune: f"{100 * prune['before']['mean']:.1f}"
        return [
            [f"{prune['step']:,}", before(prune), *(of(prune, rate) for rate in rates)]
            for prune in prunes
        ]

    return Writeup(
        title="Pruning plasticity",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {s.steps:,} steps, dense "
            f"{report.percent(summary['dense']['test_accuracy'])} at the end: by the step of the "
            "prune (rows) and its rate (columns), test accuracy in % just after it, and "
            f"{s.recover:,} steps later"
        ),
        columns=columns,
        rows=rows(cell),
        more={
            f"The accuracy {s.recover:,} steps after the prune minus that before it, in points": (
                columns,
                rows(gain),
            )
        },
        pictures={
            PICTURE: Picture(
                picture(config.sparsity, prunes),
                "Left: test accuracy before pruning (gray), just after (dotted) and after training "
                f"on for {s.recover:,} steps (lines). Right: the accuracy after training on minus "
                "that before pruning. Means over seeds; bands from the worst seed to the best.",
            )
        },
        layers={},
        models=[folder.MODEL],
        saved="The dense networks, all seeds stacked, are in {models}.",
    )


def picture(sparsities: Sequence[float], prunes: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of two panels over the step of the prune, a color for each rate of pruning."""
    rates = [share(rate) for rate in sparsities]
    kinds = {rate: rate.replace(" ", "") for rate in rates}  # each has its color
    drawn, steps = looks(["before", *kinds.values()]), [prune["step"] for prune in prunes]
    seeds = lambda key, rate: np.array([prune[key][rate]["per_seed"] for prune in prunes])
    before = np.array([prune["before"]["per_seed"] for prune in prunes])
    first = int(len(steps) > 1)  # before any training there is nothing to recover
    with canvas(8.5, 3.0) as figure:
        left, right = figure.subplots(1, 2)
        band(left, (steps, before), "before", drawn["before"], points=True)
        for rate in rates:
            look = drawn[kinds[rate]]
            band(left, (steps, seeds("test_accuracy", rate)), rate, look, points=True)
            just = 100 * seeds("just_pruned", rate).mean(1)
            left.plot(steps, just, ":", color=look.color, linewidth=1)
            gain = seeds("recovered_minus_before", rate)
            band(right, (steps[first:], gain[first:]), rate, look, points=True)
        right.axhline(0, color=drawn["before"].color, linewidth=1)
        left.set(title="Test accuracy (%)", xlabel="Step of the prune")
        right.set(title="After training on, minus before (points)", xlabel="Step of the prune")
        right.set_ylim(bottom=max(right.get_ylim()[0], LOWEST))
        figure.key(left)
    return figure.png
