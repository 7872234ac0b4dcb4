"""The result of `recipes.codesign`: a row for each number of bits, pictures of error over BOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.common import dead, exported, folder, hls, report
from recipes.common.figures import pareto, style
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.codesign import Study

Records = Sequence[dict[str, Any]]  # the lines of metrics.jsonl: generations, then rounds

SEARCH, PARETO = "plots/search.png", "plots/pareto.png"


def trials(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """The validation error and the BOPs of all trials of the search."""
    lines = [line for line in records if "trials" in line]
    errors, costs = (np.concatenate([line[name] for line in lines]) for name in ("error", "bops"))
    return errors, costs


def picked(records: Records, name: str, limit: float) -> int:
    """The round that an arm is reported at: the sparsest whose validation error is low enough.

    Where no round is below the limit it is the round with the least error.
    """
    errors = [np.mean(line[name]["validation_error"]) for line in records if "round" in line]
    near = np.flatnonzero(np.array(errors) <= limit)
    return int(near[-1]) if len(near) else int(np.argmin(errors))


def networks(records: Records) -> list[str]:
    """The names of the networks of stage 2, the first trial first."""
    rounds = next(line for line in records if "round" in line)
    return [name for name, value in rounds.items() if isinstance(value, Mapping)]


def best(records: Records, limit: float) -> tuple[str, int]:
    """The network that is exported: fewest BOPs among the good enough, and its best seed.

    Where none is good enough it is the one with the least validation error.
    """
    rounds = [line for line in records if "round" in line]
    at = {name: rounds[picked(records, name, limit)][name] for name in networks(records)}
    error = {name: np.mean(of["validation_error"]) for name, of in at.items()}
    worse = lambda name: max(error[name] - limit, 0)
    name = min(at, key=lambda name: (worse(name), at[name]["bops"]))
    return name, int(np.argmin(at[name]["validation_error"]))


def write(
    study: Study,
    trial: Mapping[str, Any],
    limit: float,
    records: Records,
    seconds: float,
    equal: int | None = None,
) -> dict[str, Any]:
    """Writes summary.json, report.md and the pictures, and prints the table."""
    config, chance = study.config, dead.chance(study.test.labels)
    rounds = [line for line in records if "round" in line]
    numbers: dict[str, Any] = {}
    for name in networks(records):
        i = picked(records, name, limit)
        at = rounds[i][name]
        right = 1 - np.asarray(at["test_error"])
        numbers[name] = {
            "test_accuracy": report.accuracy(right, chance, at["empty_layers"]),
            "validation_error": report.over_seeds(at["validation_error"]),
            "round": i,
            "sparsity": float(np.mean(at["sparsity"])),
            "bops": at["bops"],
            "near": bool(np.mean(at["validation_error"]) <= limit),
        }
    name, seed = best(records, limit)
    for of in numbers.values():
        of["times_fewer_bops"] = numbers["first trial"]["bops"] / of["bops"]
    summary = report.summary(
        config,
        "error over bit operations: an architecture searched, quantized and pruned",
        steps=study.steps,
        chosen=dict(trial),
        trials=config.population * config.generations,
        exported={"network": name, "seed": seed, "equal_in_hls": equal},
        chance=chance,
        arms=numbers,
        seconds=seconds,
    )
    return report.finish(config, write_up(study, trial, records, summary), summary)


def write_up(
    study: Study, trial: Mapping[str, Any], records: Records, summary: dict[str, Any]
) -> Writeup:
    """The result, for people: a row for the first network and for each number of bits."""
    config, arms = study.config, summary["arms"]
    errors, costs = trials(records)
    rounds = [line for line in records if "round" in line]
    points = {
        name: [(line[name]["bops"], np.mean(line[name]["test_error"])) for line in rounds]
        for name in arms
        if name != "first trial"
    }
    widths = "-".join(
        str(trial[name]) for name in trial if name.startswith("width ") and trial[name]
    )
    first = arms["first trial"]["bops"], 1 - arms["first trial"]["test_accuracy"]["mean"]
    return Writeup(
        title="Neural architecture codesign",
        headline=(
            f"{config.dataset}, {summary['trials']} trials, {config.seeds} seeds; chosen: hidden "
            f"layers {widths}, {trial['activation']}, norm {trial['norm']}, learning rate "
            f"{trial['learning rate']:.2g}; the first trial is float32 and dense"
        ),
        columns=("test accuracy", "sparsity", "BOPs", "first / BOPs", "round"),
        rows=[
            (
                name if of["near"] else f"{name} (worse)",
                report.percent(of["test_accuracy"]),
                f"{100 * of['sparsity']:.1f} %",
                f"{of['bops']:,.0f}",
                f"{of['times_fewer_bops']:.1f}",
                str(of["round"] + 1),
            )
            for name, of in arms.items()
        ],
        pictures={
            SEARCH: Picture(
                pareto.errors(
                    {"trials": np.stack([costs, errors], 1)},
                    style.looks(["trials"]),
                    "BOPs of an example, float32",
                    "Validation error (%) of the search",
                    (costs[0], errors[0]),
                ),
                "Each trial of the search, and the front that no trial beats; the cross is the "
                "first trial. Means over seeds.",
            ),
            PARETO: Picture(
                pareto.errors(
                    points, style.looks(points), "BOPs of an example", "Test error (%)", first
                ),
                "The chosen architecture round by round, each sparser than the one before; the "
                "cross is the first trial, trained as long. Means over seeds.",
            ),
        },
        layers={},
        models=[f"{folder.MODEL}/{name.replace(' ', '-')}" for name in arms],
        notes=(
            f"`{exported.FILE}` has the {summary['exported']['network']} network of seed "
            f"{summary['exported']['seed']}, for `jax.export.deserialize`. "
            f"{in_hls(study, summary)}Each arm is reported at its sparsest round whose validation "
            f"error is at most {config.tolerance:g} points above that of the first trial"
        ),
    )


def in_hls(study: Study, summary: dict[str, Any]) -> str:
    """How many images get the same bits from the C++, in words; "" without --hls."""
    equal, asked = summary["exported"]["equal_in_hls"], study.config.hls
    if equal is None:
        return "The exported network is float32: it has no hls4ml project. " if asked else ""
    of = min(study.test.images.shape[0], hls.COMPARED)
    return (
        f"`{hls.FOLDER}` is its hls4ml project: the C++ gives {equal} of {of} images equal bits. "
    )
