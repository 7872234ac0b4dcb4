"""The numbers, the report and the figure of `recipes.distill_pruned`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.common import dead, folder, report, small
from recipes.common.figures import arms as figure
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.distill_pruned import Study

ARMS = "plots/arms.png"
DENSE, CUT, PLAIN = "dense", "just cut", "cross_entropy"
Records = Sequence[dict[str, Any]]  # the two lines of metrics.jsonl: dense networks, students


def model_path(arm: str) -> str:
    """Where the compacted students of a loss are, below the folder of the run."""
    return f"{folder.MODEL}/{arm}"


def write(s: Study, records: Records) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    chance = dead.chance(s.dataset.test.labels)
    first, second = records
    measured = {DENSE: first[DENSE], CUT: second[CUT], **{arm: second[arm] for arm in s.arms}}
    networks = {
        name: {
            "test_accuracy": report.accuracy(numbers["test_accuracy"], chance),
            **{k: report.over_seeds(v) for k, v in numbers.items() if k != "test_accuracy"},
        }
        for name, numbers in measured.items()
    }
    for arm in s.losses:
        mine, plain = (np.array(measured[name]["test_accuracy"]) for name in (arm, PLAIN))
        networks[arm]["minus_cross_entropy"] = paired(mine - plain)
    dense = small.size_of(s.structure, {})
    summary = report.summary(
        s.config,
        "losses of distillation after one structured cut: accuracy and calibration",
        steps=s.steps,
        steps_of_students=s.tuned,
        layers=[name.removeprefix("params/") for name in s.layers],
        chance=chance,
        weights_left=[n / dense.weights for n in second["weights"]],
        flops_left=[n / dense.flops for n in second["flops"]],
        networks=networks,
        seconds=second["seconds"],
    )
    return report.finish(s.config, write_up(s, summary), summary)


def paired(differences: np.ndarray) -> dict[str, Any]:
    """{mean, error} of differences on the same seed; the error is None for one seed."""
    n = len(differences)
    error = float(differences.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"mean": float(differences.mean()), "error": error}


def write_up(s: Study, summary: dict[str, Any]) -> Writeup:
    """The result, for people: a row for each loss."""
    config, networks = s.config, summary["networks"]
    weights, flops = (100 * np.mean(summary[f"{key}_left"]) for key in ("weights", "flops"))
    return Writeup(
        title="A pruned student and its teacher",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {s.steps:,} steps; cut "
            f"once to {flops:.1f} % of the FLOPs and {weights:.1f} % of the weights, then "
            f"{s.tuned:,} steps of each student. In %: test accuracy, its gain over "
            f"{PLAIN} on the same seed (± standard error), expected calibration error (ECE), mean "
            "confidence minus accuracy (sure), and answers as the dense teacher's"
        ),
        columns=["accuracy", "gain", "ECE", "sure", "as dense"],
        rows=[(name, *cells(numbers)) for name, numbers in networks.items()],
        pictures={ARMS: picture(summary)},
        layers={"all students": "\n".join(summary["layers"])},
        models=[model_path(arm) for arm in s.arms],
        of_layers="The layers whose inputs are features, by their params",
        saved=(
            "The compacted students of all seeds are in {models}: read one with "
            "`recipes.common.small.load(path, seed)`."
        ),
    )


def cells(numbers: dict[str, Any]) -> list[str]:
    """The cells of a row."""
    minus = numbers.get("minus_cross_entropy")
    bare = lambda key: report.percent(numbers[key], unit="")
    return [
        bare("test_accuracy"),
        report.plus_minus(minus, 2, 100) if minus else "",
        bare("calibration_error"),
        f"{100 * numbers['overconfidence']['mean']:+.2f}",
        f"{100 * numbers['as_teacher']['mean']:.2f}",
    ]


def picture(summary: dict[str, Any]) -> Picture:
    """The accuracy and the calibration error of each network but the one that was just cut."""
    networks = {name: of for name, of in summary["networks"].items() if name != CUT}
    titles = {
        "Test accuracy (%)": "test_accuracy",
        "Calibration error (%)": "calibration_error",
        "Confidence minus accuracy (points)": "overconfidence",
    }
    panels = {
        title: {name: 100 * np.array(of[key]["per_seed"]) for name, of in networks.items()}
        for title, key in titles.items()
    }
    return Picture(
        figure.measures(panels, PLAIN),
        "A dot is a seed, a bar the mean; dashed: the mean of the students of plain cross-entropy. "
        "Right of zero in the last panel a network is surer than right.",
    )
