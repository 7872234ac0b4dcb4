"""The names of the arms, the numbers and the figures of `recipes.sharing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import jaxprune as jp
from recipes.common import arms, dead, folder, report, study
from recipes.common.arms import Weights
from recipes.common.figures import left, style
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.sharing import Config

STORED = "plots/stored.png"


def name(method: str, times: float) -> str:
    """The name of an arm."""
    return f"{method} {times:g}x"


def write(config: Config, outcome: study.Outcome) -> dict[str, Any]:
    """Writes the folder of a run; returns what summary.json holds."""
    numbers = {arm: _numbers(outcome, arm) for arm in outcome.arms}
    summary = report.summary(
        config,
        "test accuracy of shared, pruned and narrow networks at equal numbers stored",
        methods=list(config.method),
        compressions=list(config.compression),
        steps=outcome.history[-1]["step"],
        chance=dead.chance(outcome.dataset.test.labels),
        arms=numbers,
        seconds=round(outcome.seconds, 2),
    )
    for arm in outcome.arms:
        study.save_model(config.out / folder.MODEL / arm.replace(" ", "-"), outcome, arm)
    return report.finish(config, write_up(config, summary), summary)


def _numbers(outcome: study.Outcome, name: str) -> dict[str, Any]:
    """Accuracy, numbers stored for the kernels, and bits: with the places of pruned ones."""
    arm, state = outcome.arms[name], outcome.states[name]
    params, masks, empty = arms.network(arm, state), None, {}
    weights = sum(w[0].size for w in jax.tree.leaves(jp.kernels(params)))
    stored, places = weights, 0
    if arm.learned:
        stored = state.params.shared.shape[1] + state.params.scales.shape[1]
    elif arm.weights is Weights.SPARSE:
        masks = arms.masks(arm, state)
        stored = round(float(report.kept_weights(masks)[0].mean()))
        places, empty = entropy(stored, weights), dead.empty_layers(masks)
    accuracy = outcome.history[-1][name]["test_accuracy"]
    chance = dead.chance(outcome.dataset.test.labels)
    return {
        "test_accuracy": report.accuracy(accuracy, chance, empty),
        "weights": weights,
        "stored": stored,
        "bits": 32 * stored + places,
        "training_seconds": outcome.history[-1][name]["seconds"],
    }


def entropy(kept: int, weights: int) -> int:
    """The least bits that say which weights a mask keeps, by how many it keeps.

    >>> entropy(25, 100), entropy(0, 100)
    (82, 0)
    """
    counts = np.array([kept, weights - kept], float)
    counts = counts[counts > 0]
    return int(np.ceil(np.sum(counts * np.log2(weights / counts))))


def write_up(config: Config, summary: Mapping[str, Any]) -> Writeup:
    """The result, for people: a row for each method."""
    numbers = summary["arms"]
    dense = numbers["dense"]

    def cell(method: str, times: float) -> str:
        own = numbers.get(name(method, times))
        return report.percent(own["test_accuracy"], unit="") if own else "-"

    return Writeup(
        title="Shared and pruned weights",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} "
            f"steps: test accuracy in %, by compression; dense {dense['weights']:,} weights, "
            f"{report.percent(dense['test_accuracy'])}"
        ),
        columns=[f"{times:g}x" for times in config.compression],
        rows=[
            [method, *(cell(method, times) for times in config.compression)]
            for method in config.method
        ],
        pictures={
            STORED: Picture(
                picture(config, numbers),
                "Test accuracy of the last step: over the numbers that are stored for the kernels, "
                "and over their bits with the places of masks, entropy coded. Means over seeds; "
                "bands from the worst seed to the best. Biases are not counted.",
            )
        },
        layers={},
        models=[f"{folder.MODEL}/{arm.replace(' ', '-')}" for arm in numbers],
        notes="-: no network is so small" if _too_small(config, numbers) else "",
        saved="The networks, all seeds stacked, are in {models}.",
    )


def _too_small(config: Config, numbers: Mapping[str, Any]) -> bool:
    return len(numbers) < 1 + len(config.method) * len(config.compression)


def picture(config: Config, numbers: Mapping[str, Any]) -> bytes:
    """PNG of two panels: accuracy over numbers, and over bits, both in % of dense."""
    dense = numbers["dense"]
    drawn = style.looks(["dense", *config.method])
    with style.canvas(9.0, 3.2) as figure:
        both = figure.subplots(1, 2, sharey=True)
        for axes, key, what in zip(both, ("stored", "bits"), ("Numbers", "Bits"), strict=True):
            curves = {}
            for method in config.method:
                names = [name(method, times) for times in sorted(config.compression)]
                own = [numbers[arm] for arm in names if arm in numbers]
                if own:
                    accuracy = np.array([n["test_accuracy"]["per_seed"] for n in own])
                    curves[method] = [n[key] / dense[key] for n in own], accuracy
            left.draw(axes, curves, np.array(dense["test_accuracy"]["per_seed"]), drawn)
            axes.set(xlabel=f"{what} stored (%)")
        both[0].set(title="Test accuracy (%)")
        both[1].set(title="The same, with the places of masks")
        figure.key(both[0])
    return figure.png
