"""The names of the arms, the numbers and the figure of `recipes.small_dense`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from recipes.common import arms, dead, folder, report, study, text
from recipes.common.arms import Weights
from recipes.common.figures import left
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.small_dense import Config

SPARSE, SMALL = "sparse", "small"
PICTURE = "plots/non_zeros.png"


def name(kind: str, sparsity: float) -> str:
    """The name of an arm."""
    return f"{kind} {100 * sparsity:g}"


def write(config: Config, outcome: study.Outcome) -> dict[str, Any]:
    """Writes the folder of a run; returns what summary.json holds."""
    numbers = {arm: _numbers(config, outcome, arm) for arm in outcome.arms}
    gaps = {}
    for sparsity in sorted(config.sparsity):
        pair = (numbers[name(kind, sparsity)]["test_accuracy"] for kind in (SPARSE, SMALL))
        gaps[f"{sparsity:g}"] = report.over_seeds(np.subtract(*(one["per_seed"] for one in pair)))
    summary = report.summary(
        config,
        "test accuracy of large sparse and small dense networks, at equal numbers of params",
        sparsities=sorted(config.sparsity),
        steps=outcome.history[-1]["step"],
        chance=dead.chance(outcome.dataset.test.labels),
        arms=numbers,
        sparse_minus_small=gaps,
        seconds=round(outcome.seconds, 2),
    )
    for arm in outcome.arms:
        study.save_model(config.out / folder.MODEL / arm.replace(" ", "-"), outcome, arm)
    return report.finish(config, write_up(config, summary), summary)


def _numbers(config: Config, outcome: study.Outcome, name: str) -> dict[str, Any]:
    """Accuracy, and the params that are left; of text also bits a character."""
    arm, state = outcome.arms[name], outcome.states[name]
    params, empty = arms.network(arm, state), {}
    non_zeros = sum(x[0].size for x in jax.tree.leaves(params))
    if arm.weights is Weights.SPARSE:
        masks = arms.masks(arm, state)
        kept, prunable = report.kept_weights(masks)
        non_zeros += int(kept[0]) - prunable  # all seeds keep as many
        empty = dead.empty_layers(masks)
    accuracy, test = outcome.history[-1][name]["test_accuracy"], outcome.dataset.test
    numbers = {
        "test_accuracy": report.accuracy(accuracy, dead.chance(test.labels), empty),
        "non_zeros": non_zeros,
        "training_seconds": outcome.history[-1][name]["seconds"],
    }
    if config.dataset in text.DATASETS:
        numbers["bits"] = report.over_seeds(text.bits(arm.module.apply, test)(params))
    return numbers


def write_up(config: Config, summary: Mapping[str, Any]) -> Writeup:
    """The result, for people: a row for each sparsity."""
    numbers, is_text = summary["arms"], config.dataset in text.DATASETS
    network = "a decoder" if is_text else config.model

    def row(sparsity: float) -> list[str]:
        sparse, small = (numbers[name(kind, sparsity)] for kind in (SPARSE, SMALL))
        gap = summary["sparse_minus_small"][f"{sparsity:g}"]
        cells = [f"{one['non_zeros']:,}" for one in (sparse, small)]
        if is_text:
            cells += [_mean(one) for one in (sparse, small)]
            cells += [f"{one['bits']['mean']:.3f}" for one in (sparse, small)]
        else:
            cells += [_percent(one) for one in (sparse, small)]
        return [f"{100 * sparsity:g} %", *cells, report.points(gap)]

    bits = f", {numbers['dense']['bits']['mean']:.3f} bits a character" if is_text else ""
    return Writeup(
        title="Large and sparse, or small and dense",
        headline=(
            f"{network} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} steps: by "
            f"sparsity the params that are left, and test accuracy in %; dense "
            f"{numbers['dense']['non_zeros']:,} params, {_percent(numbers['dense'])} %{bits}"
        ),
        columns=[
            *("params, sparse", "small", "sparse", "small"),
            *(("bits, sparse", "small") if is_text else ()),
            "points",
        ],
        rows=[row(sparsity) for sparsity in sorted(config.sparsity)],
        pictures={
            PICTURE: Picture(
                picture(config, numbers),
                "Test accuracy of the last step over the params that are left, in % of those of "
                "the large dense network. Means over seeds; bands from the worst seed to the best.",
            )
        },
        layers={},
        models=[f"{folder.MODEL}/{arm.replace(' ', '-')}" for arm in numbers],
        notes="points: sparse minus small",
        saved="The networks, all seeds stacked, are in {models}.",
    )


def _percent(numbers: Mapping[str, Any]) -> str:
    return report.percent(numbers["test_accuracy"], unit="")


def _mean(numbers: Mapping[str, Any]) -> str:
    accuracy = numbers["test_accuracy"]
    return f"{100 * accuracy['mean']:.2f}{dead.mark(accuracy)}"


def picture(config: Config, numbers: Mapping[str, Any]) -> bytes:
    """PNG of accuracy over params, of both kinds."""
    dense = numbers["dense"]
    seeds = lambda one: np.array(one["test_accuracy"]["per_seed"])
    curves = {}
    for kind, shown in ((SPARSE, "large sparse"), (SMALL, "small dense")):
        points = [numbers[name(kind, sparsity)] for sparsity in sorted(config.sparsity)]
        share = [one["non_zeros"] / dense["non_zeros"] for one in points]
        curves[shown] = share, np.stack([seeds(one) for one in points])
    return left.weights_left(curves, seeds(dense), what="Params")
