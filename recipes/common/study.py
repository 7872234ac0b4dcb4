"""A study of arms: trains them side by side, then writes the folder of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxprune as jp
from jaxprune.masks import like
from recipes.common import arms, checkpoints, data, dead, folder, lanes, report, settings, shift
from recipes.common.arms import Arm, History, States, Weights
from recipes.common.figures import style
from recipes.common.folder import RecipeError
from recipes.common.journal import journal
from recipes.common.lanes import Network, State
from recipes.common.report import Picture, Writeup
from recipes.common.settings import Settings
from recipes.common.terminal import counted

CURVES, LAYERS = "plots/training.png", "plots/layers.png"


class Outcome(NamedTuple):
    """The result of a training."""

    arms: Mapping[str, Arm]
    dataset: data.Dataset
    states: States
    history: History
    seconds: float


def train(
    config: Settings,
    make_arms: Callable[[data.Dataset, int], Mapping[str, Arm]],
    dataset: data.Dataset | None = None,
) -> Outcome:
    """Trains the arms of `make_arms(dataset, steps)` side by side, and logs to `config.out`.

    `dataset` is that of the settings, or another one.

    Raises `RecipeError`, before anything is written, for a folder that may not be written to, data
    that can't be read, and arms that the library refuses, such as one with an empty layer.
    """
    dataset = dataset or settings.dataset_of(config)
    plan = settings.plan_of(config, len(dataset.train.labels))
    made = make_arms(dataset, plan.steps)
    for name, arm in made.items():
        check_arm(name, arm, dataset.train.images)
    began = time.perf_counter()
    with journal(config) as kept:
        states, history = arms.train(made, dataset, plan, kept)
    return Outcome(made, dataset, states, history, time.perf_counter() - began)


def check_arm(name: str, arm: Arm, images: np.ndarray) -> None:
    """Raises `RecipeError` if the library refuses the first state of an arm; only traces it."""
    try:
        jax.eval_shape(lambda: arms.begin(arm, lanes.seed_keys(0, 1), images))
    except ValueError as error:
        raise RecipeError(f"{name}: {' '.join(str(error).split())}") from error


def numbers(outcome: Outcome) -> dict[str, Any]:
    """The numbers in summary.json of every study of arms."""
    return {
        "steps": outcome.history[-1]["step"],
        "seconds": round(outcome.seconds, 2),
        "chance": dead.chance(outcome.dataset.test.labels),
        "arms": {name: _numbers(outcome, name) for name in outcome.arms},
    }


def _numbers(outcome: Outcome, name: str) -> dict[str, Any]:
    """The numbers of one arm."""
    last, state = outcome.history[-1][name], outcome.states[name]
    one = lanes.lane_of(state.params, 0)
    weights = sum(x.size for x in jax.tree.leaves(jp.kernels(one)))
    kept, empty = np.full(len(last["loss"]), weights), {}
    if outcome.arms[name].weights is not Weights.DENSE:
        masks = arms.masks(outcome.arms[name], state)
        (kept, weights), empty = report.kept_weights(masks), dead.empty_layers(masks)
    chance = dead.chance(outcome.dataset.test.labels)
    seen = ("overlap_first", "ever_active")
    return {
        "test_accuracy": report.accuracy(last["test_accuracy"], chance, empty),
        **{key: report.over_seeds(last[key]) for key in seen if key in last},
        "sparsity": float(np.mean((weights - kept) / weights)),
        "prunable_weights": weights,
        "kept_weights": kept.tolist(),
        "training_seconds": last["seconds"],
        "state_bytes": report.tree_bytes(state),
    }


def masked(outcome: Outcome) -> list[str]:
    """The names of the arms with masks."""
    return [name for name, arm in outcome.arms.items() if arm.weights is not Weights.DENSE]


def pictures(outcome: Outcome, pruned_between: tuple[int, int] | None = None) -> dict[str, Picture]:
    """The figures that every study has, by their path below its folder."""
    accuracy = {arm: style.curve(outcome.history, arm, "test_accuracy") for arm in outcome.arms}
    sparsity = {arm: style.curve(outcome.history, arm, "sparsity") for arm in masked(outcome)}
    layers = {
        arm: report.layer_density(arms.masks(outcome.arms[arm], outcome.states[arm]))
        for arm in masked(outcome)
    }
    shade = " The masks change in the grey part." if pruned_between else ""
    return {
        CURVES: Picture(
            style.training_curves(accuracy, sparsity, pruned_between),
            f"Means over seeds; bands from the worst seed to the best.{shade}",
        ),
        LAYERS: Picture(
            style.layer_density(layers, style.looks(outcome.arms)),
            "Weights kept in each layer: mean and standard deviation over seeds.",
        ),
    }


def publish(
    config: Settings,
    outcome: Outcome,
    summary: dict[str, Any],
    title: str,
    pictures: Mapping[str, Picture],
    told: Collection[str] | None = None,
) -> dict[str, Any]:
    """Writes the models, the figures, summary.json and report.md, and prints the table.

    The report tells the layers of all arms with masks, or of the arms in `told`. With --shift it
    also tells how all arms do under shift.
    """
    shifted = under_shift(config, outcome)
    models = {name: f"{folder.MODEL}/{name.replace(' ', '-')}" for name in masked(outcome)}
    if list(models) == ["sparse"]:  # one network needs no name
        models = {"sparse": folder.MODEL}
    for name, path in models.items():
        save_model(config.out / path, outcome, name)
    columns, rows = table(summary["arms"])
    writeup = Writeup(
        title=title,
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} "
            "steps: mean ± standard deviation over seeds"
        ),
        columns=columns,
        rows=rows,
        pictures={**pictures, **shift.pictures(shifted)},
        layers={n: layer_report(outcome, n) for n in models if told is None or n in told},
        models=list(models.values()),
        more=shift.tables(shifted),
    )
    return report.finish(config, writeup, summary | shift.summary(shifted))


def under_shift(config: Settings, outcome: Outcome) -> shift.Shown:
    """By arm the numbers of `shift.measure_of`; {} without --shift."""
    if not (isinstance(config, settings.Shifted) and config.shift):
        return {}
    found = {}
    with counted("under shift", len(outcome.arms)) as done:
        for name, arm in outcome.arms.items():
            state = outcome.states[name]
            used = Network(arms.network(arm, state), state.batch_stats, None)
            measure = shift.measure_of(arm.module, outcome.dataset, config.dataset)
            found[name] = measure(used.variables)
            done(name)
    return found


def save_model(path: Path, outcome: Outcome, name: str) -> None:
    """The weights, running statistics and masks of an arm, all seeds; a dense arm keeps all."""
    arm, state = outcome.arms[name], outcome.states[name]
    params = arms.network(arm, state)
    if arm.weights is Weights.DENSE:
        masks = lanes.keep_all(params)
    else:
        masks = like(arms.masks(arm, state), params)  # without what else was learned
    checkpoints.save_model(path, params, state.batch_stats, masks)


def table(arms: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the arms, for a terminal of 80 columns; the first cell is the name."""
    cells: dict[str, Callable[[Any], str]] = {
        "test accuracy": lambda n: report.percent(n["test_accuracy"]),
        "sparsity": lambda n: f"{100 * n['sparsity']:.2f} %",
    }
    collapse = any("on_paths" in numbers for numbers in arms.values())
    if not collapse:
        cells["kept"] = lambda n: _range(n["kept_weights"])
    if any("ever_active" in numbers for numbers in arms.values()):
        cells["R_s"] = lambda n: (
            f"{100 * n['ever_active']['mean']:.3g} %" if "ever_active" in n else ""
        )
    if collapse:
        cells["on paths"] = lambda n: _range(n["on_paths"]) if "on_paths" in n else ""
        cells["collapsed"] = lambda n: _out_of(n["collapsed"]) if "collapsed" in n else ""
    else:
        cells["time"] = lambda n: f"{n['training_seconds']:.1f} s"
        if any("times_as_fast" in numbers for numbers in arms.values()):
            cells["dense time / time"] = lambda n: f"{n['times_as_fast']:.2f}"
        cells["state"] = lambda n: f"{n['state_bytes'] / 1e6:.1f} MB"
    rows = [[name, *(cell(numbers) for cell in cells.values())] for name, numbers in arms.items()]
    return list(cells), rows


def _range(counts: list[int]) -> str:
    few, many = min(counts), max(counts)
    return f"{few:,}" if few == many else f"{few:,}-{many:,}"


def _out_of(seeds: list[bool]) -> str:
    return f"{sum(seeds)} of {len(seeds)}"


def layer_report(outcome: Outcome, name: str) -> str:
    """`jp.report` of the first seed of an arm, as text."""
    first: State = lanes.lane_of(outcome.states[name], 0)
    image = jax.ShapeDtypeStruct((1, *outcome.dataset.train.images.shape[1:]), np.float32)

    def apply(params, images):
        variables = {"params": params, "batch_stats": first.batch_stats}
        return outcome.arms[name].module.apply(variables, images)

    params = arms.network(outcome.arms[name], first)
    ever = optax.tree.get(first.opt_state, "ever_active", None)
    masks = arms.masks(outcome.arms[name], first)
    return report.layers(params, masks, apply, image, ever_active=ever)
