"""How much of each layer: a trained network pruned once: `python -m recipes.allocations --help`.

Trains dense networks, and prunes each by magnitude at once, without more training: as much of each
layer (uniform), by the shapes of the layers (erk), by one threshold for all weights (global) or for
LAMP's scores (lamp), by the distortions that pruning each layer alone causes, least in sum (rd) or
of one slope (slope). Writes accuracy over weights left.

References: Lee et al., 2021, Layer-Adaptive Sparsity for the Magnitude-based Pruning; Xu et al.,
2023, Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks; Xu et
al., 2024, LPViT: Low-Power Semi-structured Pruning for Vision Transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import checkpoints, cli, dead, flags, folder, lanes, measures, report, settings
from recipes.common import study as studies
from recipes.common.arms import Arm
from recipes.common.data import Dataset
from recipes.common.figures import left, style
from recipes.common.report import Picture, Writeup

ALLOCATIONS = ("uniform", "erk", "global", "lamp", "rd", "slope")
ACCURACY = "plots/weights_left.png"
Curves = Mapping[str, Any]  # of each layer its distortion by its sparsity


@dataclass(frozen=True)
class Config(settings.Settings):
    """Trained networks pruned at once, by several allocations."""

    out: Path = Path("runs/allocations")
    sparsity: Annotated[tuple[float, ...], flags.within("(0, 1)"), flags.DISTINCT] = (0.5, 0.7, 0.9)
    """The fractions of weights that are pruned."""
    allocation: Annotated[tuple[str, ...], flags.choice(ALLOCATIONS), flags.DISTINCT] = ALLOCATIONS
    """How the sparsity is shared among layers."""
    calibration: flags.Count = 256
    """Training examples that distortions are measured on, the first ones; labels play no part."""
    points: Annotated[int, flags.at_least(2)] = 50
    """Sparsities at which the distortion of each layer is measured."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        most = 1 - 2 / self.points  # a layer keeps one part, and rd rounds down
        if max(self.sparsity) > most:
            yield (
                f"--points {self.points} measures curves that reach a --sparsity of {most:g}, got "
                f"{max(self.sparsity):g}; choose more points"
            )


# --- the method -----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """Dense training."""
    module = settings.module_of(config, dataset.classes)
    return {"dense": Arm(module, settings.optimizer(config, steps))}


def masks_of(allocation: str, params: Any, curves: Curves) -> Callable[[float], Any]:
    """Sparsity -> the masks of one network."""
    kernels = jp.kernels(params)
    rules = {
        "uniform": jp.uniform,
        "erk": jp.erk,
        "global": jp.global_threshold,
        "lamp": jp.global_threshold,
        "rd": jp.allocation.least_distortion(curves),
        "slope": jp.allocation.common_slope(
            curves, least_kept=1 / len(next(iter(curves.values())))
        ),
    }
    scores = (jp.lamp() if allocation == "lamp" else jp.magnitude)(kernels)
    return lambda sparsity: jp.select(scores, rules[allocation], sparsity)


def curves_of(config: Config, outcome: studies.Outcome) -> list[Curves]:
    """Of each seed the distortion of each layer by its sparsity."""
    module, state = outcome.arms["dense"].module, outcome.states["dense"]
    images = jnp.asarray(outcome.dataset.train.images[: config.calibration])

    def of(network: lanes.Network) -> Curves:
        logits = lambda params, x: module.apply(network._replace(params=params).variables, x)
        return jp.calibration.distortion_curves(logits, network.params, [images], config.points)

    stack = lanes.Network(state.params, state.batch_stats, None)
    return [of(lanes.lane_of(stack, i)) for i in range(config.seeds)]


def pruned(config: Config, outcome: studies.Outcome) -> dict[tuple[str, float], lanes.Network]:
    """(allocation, sparsity) -> the pruned networks, a stack over seeds."""
    state, curves = outcome.states["dense"], curves_of(config, outcome)
    made = {}
    for allocation in config.allocation:
        of_seed = [
            masks_of(allocation, lanes.lane_of(state.params, i), curves[i])
            for i in range(config.seeds)
        ]
        for sparsity in config.sparsity:
            masks = lanes.stacked(of(sparsity) for of in of_seed)
            params = jp.apply_masks(state.params, masks)
            made[allocation, sparsity] = lanes.Network(params, state.batch_stats, masks)
    return made


# --- the command ----------------------------------------------------------------------------------


def allocations(config: Config) -> dict[str, Any]:
    """Trains, prunes, writes the folder `config.out`; returns what summary.json holds."""
    outcome = studies.train(config, partial(arms, config))
    numbers = studies.numbers(outcome)
    test = measures.accuracy(outcome.arms["dense"].module, outcome.dataset.test)
    networks = pruned(config, outcome)
    for (allocation, sparsity), network in networks.items():
        numbers["arms"][name(allocation, sparsity)] = _told(network, test, numbers["chance"])
        path = config.out / folder.MODEL / f"{allocation}_{sparsity:g}"
        checkpoints.save_model(path, *network)
    summary = report.summary(
        config,
        "test accuracy of trained networks pruned at once, by allocation",
        sparsities=list(config.sparsity),
        allocations=list(config.allocation),
        **numbers,
    )
    cell = lambda arm: report.percent(numbers["arms"][arm]["test_accuracy"])
    writeup = Writeup(
        title="Allocations of a one-shot prune",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {numbers['steps']:,} "
            "steps: test accuracy, mean ± standard deviation over seeds"
        ),
        columns=[f"{100 * s:g} % sparse" for s in config.sparsity],
        rows=[
            ["dense", cell("dense"), *[""] * (len(config.sparsity) - 1)],
            *([a, *(cell(name(a, s)) for s in config.sparsity)] for a in config.allocation),
        ],
        pictures={ACCURACY: _picture(config, numbers["arms"])},
        layers={
            name(a, config.sparsity[-1]): report.layers_of_first(networks[a, config.sparsity[-1]])
            for a in config.allocation
        },
        models=[f"{folder.MODEL}/{a}_{s:g}" for a, s in networks],
    )
    return report.finish(config, writeup, summary)


def name(allocation: str, sparsity: float) -> str:
    """The name of an arm."""
    return f"{allocation} {100 * sparsity:g} %"


def _told(network: lanes.Network, test: measures.Accuracy, chance: float) -> dict[str, Any]:
    kept, weights = report.kept_weights(network.masks)
    values = test(network.variables)
    return {
        "test_accuracy": report.accuracy(values, chance, dead.empty_layers(network.masks)),
        "sparsity": float(np.mean((weights - kept) / weights)),
        "prunable_weights": weights,
        "kept_weights": kept.tolist(),
        "layers": {
            path: kept.tolist() for path, kept in report.layer_density(network.masks).items()
        },
    }


def _picture(config: Config, numbers: Mapping[str, Any]) -> Picture:
    def line(allocation: str) -> left.Line:
        own = [numbers[name(allocation, s)] for s in config.sparsity]
        accuracy = np.asarray([n["test_accuracy"]["per_seed"] for n in own])
        empty = [
            np.min(list(n["layers"].values()), axis=0) == 0  # of each seed
            for n in own
        ]
        return left.Line([1 - s for s in config.sparsity], accuracy, np.asarray(empty))

    dense = np.asarray(numbers["dense"]["test_accuracy"]["per_seed"])
    drawn = style.looks(["dense", *config.allocation])
    return Picture(
        left.accuracy({a: line(a) for a in config.allocation}, dense, drawn),
        "Trained networks pruned at once: means over seeds; bands from the worst seed to the best.",
    )


main = cli.command(Config, allocations)

if __name__ == "__main__":
    main()
