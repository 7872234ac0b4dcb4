"""The numbers, the report and the figures of `recipes.tickets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import jaxprune as jp
from recipes.common import checkpoints, dead, folder, report, shift
from recipes.common.best import End
from recipes.common.figures import left, style
from recipes.common.lanes import Network
from recipes.common.measures import Accuracy
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.tickets import Config, Study

REWINDING = ("ltr", "sap", "ap")  # the weights go back to those of the rewind step
RETRAINING = ("lrr", "ft", "slr", "clr", "llr", "allr")  # the weights stay, by these rates
METHODS = ("ltr", *RETRAINING, "sap", "ap")
CONTROLS = ("reinit", "random")  # of ltr
PICTURE, LAYERS = "plots/tickets.png", "plots/layers.png"
INDEX, DEAD = "plots/pq_index.png", "plots/dead.png"
MOST_WITH_SPREAD = 4  # arms: there is no room for more on 80 columns

Records = Sequence[dict[str, Any]]  # the lines of metrics.jsonl, one a phase


def of_end(
    end: End,
    test: Accuracy,
    norms: tuple[float, float],
    measure: shift.Measure | None = None,
    dead_rate: Accuracy | None = None,
) -> dict[str, Any]:
    """An arm's part of a line of metrics.jsonl; lists are over replicates."""
    more = {"shift": shift.lists(measure(end.early.variables))} if measure else {}
    if dead_rate:
        more["dead_rate"] = dead_rate(end.early.variables).tolist()
    return {
        "kept_weights": report.kept_weights(end.network.masks)[0].tolist(),
        "empty_layers": dead.empty_layers(end.network.masks),
        "validation_accuracy": end.validation.tolist(),
        "early_step": end.step.tolist(),
        "test_accuracy": test(end.early.variables).tolist(),
        "end_test_accuracy": test(end.network.variables).tolist(),
        "pq_index": _indices(end.network, norms),
        **more,
    }


def _indices(network: Network, norms: tuple[float, float]) -> list[float]:
    """The PQ index of all kept weights of each network."""
    return np.asarray(_pq_indices(network.params, network.masks, norms)).tolist()


@partial(jax.jit, static_argnums=2)
def _pq_indices(params: Any, masks: Any, norms: tuple[float, float]) -> jax.Array:
    of_one = lambda params, masks: jp.tickets.pq_index(jp.kernels(params), *norms, masks)
    return jax.vmap(of_one)(params, masks)


def under_shift(records: Records) -> shift.Shown:
    """By arm, after the last phase, what --shift measured; {} without it."""
    ends = {"dense": records[0]["dense"], **records[-1]}
    return {
        arm: end["shift"] for arm, end in ends.items() if isinstance(end, dict) and "shift" in end
    }


def write(
    config: Config,
    study: Study,
    records: Records,
    ends: Mapping[str, End],
    held: int,
    seconds: float,
    chance: float,
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    for arm, end in ends.items():
        checkpoints.save_model(config.out / folder.MODEL / arm, *end.network)
    _, weights = report.kept_weights(next(iter(ends.values())).network.masks)
    dense = of_phase(records[0]["dense"], 0, weights, chance)
    arms = {
        arm: [of_phase(r[arm], r["phase"], weights, chance) for r in records[1:]]
        for arm in config.method
    }
    least = dense["test_accuracy"]["mean"] - config.tolerance / 100
    summary = report.summary(
        config,
        "test accuracy against the weights left, phase after phase of pruning",
        steps=study.steps,
        phase_steps={arm: study.length_of(arm) for arm in config.method},
        rewind=study.rewind,
        validation_examples=held,
        prunable_weights=weights,
        tolerance_points=config.tolerance,
        chance=chance,
        dense=dense,
        arms=arms,
        keeps_up_to={
            arm: None if dead.at_chance(dense["test_accuracy"]) else keeps_up_to(phases, least)
            for arm, phases in arms.items()
        },
        seconds=round(seconds, 2),
        **shift.summary(under_shift(records)),
    )
    return report.finish(config, write_up(config, records, ends, summary), summary)


def of_phase(numbers: Mapping[str, Any], phase: int, weights: int, chance: float) -> dict[str, Any]:
    """The numbers of an arm in a phase; `weights` may be pruned."""
    keys = ("end_test_accuracy", "validation_accuracy", "early_step", "pq_index", "dead_rate")
    return {
        "phase": phase,
        "weights_left": float(np.mean(numbers["kept_weights"]) / weights),
        "kept_weights": numbers["kept_weights"],
        "test_accuracy": report.accuracy(numbers["test_accuracy"], chance, numbers["empty_layers"]),
        **{key: report.over_seeds(numbers[key]) for key in keys if key in numbers},
    }


def keeps_up_to(phases: Sequence[Mapping[str, Any]], least: float) -> float:
    """The smallest fraction of weights down to which an arm is at least as accurate as `least`."""
    reached = 1.0
    for numbers in phases:
        if numbers["test_accuracy"]["mean"] < least:
            break
        reached = numbers["weights_left"]
    return reached


def pictures(
    config: Config, records: Records, ends: Mapping[str, End], weights: int
) -> dict[str, Picture]:
    """The figures, by their path below the folder of the run."""

    def curves(key: str) -> dict[str, style.Curve]:
        return {
            arm: (
                [np.mean(r[arm]["kept_weights"]) / weights for r in records[1:]],
                np.array([r[arm][key] for r in records[1:]]),
            )
            for arm in config.method
        }

    dense = lambda key: np.array(records[0]["dense"][key])
    drawn = style.looks(["dense", *config.method])
    density = {
        arm: report.layer_density(ends[arm].network.masks)
        for arm in config.method
        if arm in METHODS
    }
    made = {
        PICTURE: Picture(
            left.weights_left(curves("test_accuracy"), dense("test_accuracy")),
            "Means over replicates; bands from the worst to the best; the grey band is that of "
            "the dense networks.",
        ),
        LAYERS: Picture(
            style.layer_density(density, drawn),
            "Weights kept in each layer after the last phase: mean and standard deviation over "
            "replicates. Controls keep as many as ltr.",
        ),
        INDEX: Picture(
            left.over_phases(indices(records, config.method), "PQ index of the weights left"),
            "The PQ index of all weights that are left, after the training of each phase: 0 if all "
            "are equal, near 1 if few hold all. Means over replicates; bands from the lowest "
            "replicate to the highest.",
        ),
        **shift.pictures(under_shift(records)),
    }
    if "dead_rate" in records[0]["dense"]:
        made[DEAD] = Picture(
            left.rates(curves("dead_rate"), dense("dead_rate"), drawn),
            "The dynamic dead rate: of the units with ReLU, how many give zero for an example of "
            "the test data. Means over replicates; bands from the lowest to the highest.",
        )
    return made


def indices(records: Records, arms: Sequence[str]) -> dict[str, np.ndarray]:
    """By arm that prunes, the PQ index after each phase (1 + phases, replicates); first dense."""
    dense = records[0]["dense"]["pq_index"]
    return {
        arm: np.array([dense, *(r[arm]["pq_index"] for r in records[1:])])
        for arm in arms
        if arm in METHODS
    }


def write_up(
    config: Config, records: Records, ends: Mapping[str, End], summary: dict[str, Any]
) -> Writeup:
    """The result, for people: a row for each phase, or with many arms for each arm."""
    arms, dense = summary["arms"], summary["dense"]["test_accuracy"]
    planned = next((arm for arm in config.method if arm != "sap"), "sap")

    points = {arm: [f"{100 * n['weights_left']:.3g}" for n in arms[arm]] for arm in arms}
    few = len(arms) <= MOST_WITH_SPREAD

    def accuracy(numbers: dict[str, Any]) -> str:
        mean, std = 100 * numbers["mean"], 100 * numbers["std"]
        return (f"{mean:.2f} ± {std:.2f}" if few else f"{mean:.1f}") + dead.mark(numbers)

    cells = {arm: [accuracy(n["test_accuracy"]) for n in arms[arm]] for arm in config.method}
    if planned != "sap" and "sap" in arms:  # it keeps as many as it will
        cells["sap keeps"] = points["sap"]
    columns, rows = list(cells), list(zip(points[planned], *cells.values(), strict=True))
    if not few:
        columns, rows = points[planned], [(arm, *row) for arm, row in cells.items()]
    held = ", ".join(
        f"{arm} {dead.NOT_MEASURED if v is None else f'{100 * v:.3g} %'}"
        for arm, v in summary["keeps_up_to"].items()
    )
    return Writeup(
        title="Lottery tickets",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} replicates, "
            f"{summary['steps']:,} steps of first training, rewind step {summary['rewind']}: dense "
            f"{report.percent(dense)}; by the weights left (%), test accuracy (%) at the step of "
            f"best validation accuracy, mean{' ± deviation' if few else ''} over replicates"
        ),
        columns=columns,
        rows=rows,
        notes=f"Within {config.tolerance:g} points of dense down to: {held}",
        pictures=pictures(config, records, ends, summary["prunable_weights"]),
        layers={
            arm: report.layers_of_first(ends[arm].network)
            for arm in config.method
            if arm in METHODS
        },
        models=[f"{folder.MODEL}/{arm}" for arm in config.method],
        more=_index_table(indices(records, config.method)) | shift.tables(under_shift(records)),
    )


def _index_table(arms: Mapping[str, np.ndarray]) -> dict[str, report.Rows]:
    """Its mean over replicates, a row for each phase."""
    means = np.stack([values.mean(1) for values in arms.values()], 1)
    rows = [[str(i), *(f"{index:.3f}" for index in phase)] for i, phase in enumerate(means)]
    return {"The PQ index of the weights left, after each phase": (list(arms), rows)}
