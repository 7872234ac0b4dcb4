"""The numbers, the report and the figures of `recipes.distilled_pruning`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import jaxprune as jp
from recipes.common import checkpoints, dead, folder, lanes, measures, report
from recipes.common.data import Dataset
from recipes.common.figures import judged as figures
from recipes.common.figures.planes import Mark, Panel, contours, square
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.distilled_pruning import Config, Settled, Study

CURVES, PATHS, PLANES, DIAGONALS = (
    f"plots/{name}.png" for name in ("curves", "paths", "planes", "diagonals")
)
HEIGHTS = ("error_instability", "error_barrier", "loss_instability")
CURVATURE = ("largest_eigenvalue", "trace_per_weight", "diagonal_kept", "diagonal_pruned")

Records = list[dict[str, Any]]


def write(
    config: Config,
    s: Study,
    dataset: Dataset,
    settled: Settled,
    records: Records,
    seconds: float,
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    rounds = [record for record in records if "phase" in record]  # the others are of distillation
    for arm, stack in settled.children.items():
        first = jax.tree.map(lambda x: x[:: config.children], stack)
        checkpoints.save_model(config.out / folder.MODEL / arm, *first)
    chance = dead.chance(dataset.test.labels[: config.test_examples])
    judged = [record for record in rounds[1:] if "arms" in record]
    summary = report.summary(
        config,
        "masks from distilled images: accuracy, stability and curvature",
        children=config.children,
        steps=s.steps,
        set_steps=s.set_steps,
        rewind=s.rewind,
        sparsity_by_round=s.targets,
        threshold_points=config.threshold,
        dense=of_arm(config, rounds[0], "dense", chance),
        arms={
            arm: [
                of_arm(config, record, arm, chance) | costs(config, s, rounds, arm, record["phase"])
                for record in judged
            ]
            for arm in s.arms
        },
        seconds=round(seconds, 2),
        chance=chance,
    )
    return report.finish(config, write_up(config, s, settled, judged, summary), summary)


def of_arm(config: Config, record: dict[str, Any], arm: str, chance: float) -> dict[str, Any]:
    """The numbers of the masks of an arm at one sparsity."""
    of = record["arms"][arm]
    accuracy = 1 - np.asarray(of["test_error"])  # (seeds, children)
    at_chance = bool((accuracy <= chance).any())
    heights = {
        name: measures.over_siblings(of[name], config.children, at_chance) for name in HEIGHTS
    }
    numbers = {
        "phase": record["phase"],
        "sparsity": record["sparsity"],
        "test_accuracy": report.accuracy(accuracy.mean(1), chance, of["empty_layers"]),
        "end_test_accuracy": report.over_seeds(accuracy[:, 0]),
        **heights,
    }
    if "overlap_with_imp" in of:
        numbers["overlap_with_imp"] = report.over_seeds(of["overlap_with_imp"])
    for when in ("start", "end"):
        if when in of:
            numbers[when] = {name: report.over_seeds(of[when][name]) for name in CURVATURE}
    return numbers


def costs(config: Config, s: Study, rounds: Records, arm: str, last: int) -> dict[str, Any]:
    """What the search for the masks took: images shown to a network, and seconds.

    The first training of imp and rewound is that of the dense networks; the first rounds of chained
    are those of the largest distilled set. The seconds to distill are apart.
    """
    first = rounds[0]["costs"]
    seconds = first["dense"]["seconds"] if arm in ("imp", "rewound") else 0.0
    images = 0
    for record in rounds[1 : last + 1]:
        shared = arm == "chained" and record["phase"] <= config.stable_rounds
        images += record["costs"][arm]["images"]
        seconds += record["costs"][s.largest if shared else arm]["seconds"]
    distilled = s.largest if arm == "chained" else arm
    return {
        "images": images,
        "seconds": round(seconds, 2),
        "seconds_to_distill": first.get(distilled, {"seconds": 0.0})["seconds"],
    }


def write_up(
    config: Config, s: Study, settled: Settled, judged: Records, summary: dict[str, Any]
) -> Writeup:
    """The result, for people: a row for each arm."""
    dense, arms = summary["dense"], summary["arms"]

    def pair(arm: str, each: list[dict[str, Any]]) -> list[tuple[str, ...]]:
        """Two rows."""
        marks = [dead.mark(of["test_accuracy"]) for of in each]
        spread = ({**of["test_accuracy"], "error": of["test_accuracy"]["std"]} for of in each)
        accuracy = [report.plus_minus(numbers, 1, 100) for numbers in spread]
        instability = [report.plus_minus(of["error_instability"], 1, 100) for of in each]
        marked = (a + mark for a, mark in zip(accuracy, marks, strict=True))
        return [(arm, *marked), (f"{arm}, I", *instability)]

    last = f"{100 * config.sparsities[-1]:g} %"
    rows = pair("dense", [dense] * len(config.sparsities))
    rows += [row for arm, of in arms.items() for row in pair(arm, of)]
    return Writeup(
        title="Masks from distilled images",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds x {config.children} "
            f"children, {s.steps:,} steps, {len(s.targets)} rounds; by the sparsity: test accuracy "
            "after training on all real data (%), mean ± deviation over seeds; I, the instability "
            "of the test error between children (points), with standard error"
        ),
        columns=[f"{100 * sparsity:g} %" for sparsity in config.sparsities],
        rows=rows,
        pictures=pictures(config, s, settled, judged, summary),
        layers={"the search for the masks, and curvature": details(config, summary)},
        models=[folder.MODEL],
        saved=(
            "The first child of each seed at the last sparsity, with its masks, is in {models}, a "
            "folder an arm (a stack over seeds). `python -m recipes.stability --mask FOLDER` and "
            "`python -m recipes.landscape --masks FOLDER` train under the masks of one."
        ),
        of_layers=f"At {last} sparsity",
    )


def details(config: Config, summary: dict[str, Any]) -> str:
    """A table, as text, of the masks at the last sparsity."""
    table = [["", "images seen", "seconds", "seconds to distill", "overlap with imp"]]
    curved = ["eigenvalue", "trace / weight", "|diagonal| kept", "pruned"]
    if config.probes:
        table[0] += [f"{name}, {when}" for when in ("start", "end") for name in curved]
    for arm, of in {"dense": [summary["dense"]], **summary["arms"]}.items():
        numbers = of[-1]
        row = [arm, f"{numbers.get('images', 0):,}"]
        row += [f"{numbers.get(name, 0):.1f}" for name in ("seconds", "seconds_to_distill")]
        overlap = numbers.get("overlap_with_imp")
        row.append(f"{overlap['mean']:.3f}" if overlap else "")
        for when in ("start", "end") if config.probes else ():
            row += [f"{numbers[when][name]['mean']:.3g}" for name in CURVATURE]
        table.append(row)
    columns = list(zip(*table, strict=True))  # a line for each number, a column for each arm
    widths = [max(map(len, row)) for row in table]
    first, *lines = ("  ".join(x.rjust(w) for x, w in zip(c, widths, strict=True)) for c in columns)
    return "\n".join([first, "-" * len(first), *lines])


def pictures(
    config: Config, s: Study, settled: Settled, judged: Records, summary: dict[str, Any]
) -> dict[str, Picture]:
    """The figures, by their path below the folder of the run."""
    left = [1 - sparsity for sparsity in config.sparsities]
    accuracy, instability = (
        {
            arm: (left, np.stack([per_seed(of, name) for of in numbers]))
            for arm, numbers in summary["arms"].items()
        }
        for name in ("test_accuracy", "error_instability")
    )
    dense = summary["dense"]
    of_dense = {name: per_seed(dense, name) for name in ("test_accuracy", "error_instability")}
    last = judged[-1]["arms"]
    paths = {arm: np.asarray(of["error_path"]) for arm, of in last.items()}
    shares = f"{100 * config.sparsities[-1]:g} % sparsity"
    drawn = {
        CURVES: Picture(
            figures.curves(accuracy, instability, of_dense, config.threshold),
            "Test accuracy and instability of children that train on all real data from the first "
            "weights under the masks of each arm; means over seeds, bands from the lowest to the "
            "highest. Gray is dense; below the dashed line training is stable.",
        ),
        PATHS: Picture(
            figures.paths(paths),
            f"Test error on the straight line between two children, at {shares}; means over seeds.",
        ),
    }
    if not settled.dense.batch_stats:  # which describe no network between others
        planes = planes_of(config, s, settled)
        drawn[PLANES] = Picture(
            contours(planes, "Training loss", *2 * ["Distance in weight space"]),
            "Training loss on the plane through the first weights and two children that trained "
            f"from them, of the first seed; masks of {shares}. Without masks: dense.",
        )
    if config.probes:
        sizes = {
            arm: (of["start"]["sizes_kept"], of["start"]["sizes_pruned"])
            for arm, of in last.items()
        }
        drawn[DIAGONALS] = Picture(
            figures.diagonals(sizes),
            "The diagonal of the dense network's Hessian at the first weights: how many of the "
            f"weights that the masks of each arm keep, and prune, have each size; {shares}, all "
            "seeds.",
        )
    return drawn


def per_seed(of: dict[str, Any], name: str) -> np.ndarray:
    """The values of each seed; nan for instability with a child at chance."""
    values = np.asarray(of[name]["per_seed"])
    return np.full_like(values, np.nan) if of[name]["mean"] is None else values


def planes_of(config: Config, s: Study, settled: Settled) -> dict[str, Panel]:
    """Dense, and the arms imp and of the largest distilled set where they are: first seed."""
    shown = [arm for arm in ("dense", "imp", s.largest) if arm in settled.children]
    first = lanes.initial(s.program, s.keys[:1])
    panels = {}
    for arm in shown:
        children = settled.children[arm]
        masks = lanes.lane_of(children.masks, 0)
        start = jp.apply_masks(lanes.lane_of(first.params, 0), masks)
        three = start, *(lanes.lane_of(children.params, i) for i in range(2))
        frame = jp.analysis.plane_through(*three)
        where = [jp.analysis.coordinates(frame, params) for params in three]
        names = ("first weights", "child 1", "child 2")
        marks = [Mark(n, float(x[0]), float(x[1])) for n, x in zip(names, where, strict=True)]
        xs, ys = square(marks, config.plane)
        losses = jp.analysis.plane(s.losses.both, *frame, xs, ys)["loss"]
        panels[arm.capitalize() if arm != "imp" else "IMP"] = Panel(
            xs, ys, np.asarray(losses), marks
        )
    return panels
