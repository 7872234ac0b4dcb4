"""What `recipes.one_shot` tells: its numbers, its report, its pictures, and samples of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import jaxprune as jp
from recipes.common import folder, report
from recipes.common.figures import text as pictures
from recipes.common.models.decoder import place_of
from recipes.common.report import Picture, Writeup
from recipes.reports.language import SAMPLES, checksum, number

if TYPE_CHECKING:
    from recipes.language import Study
    from recipes.one_shot import Config

PERPLEXITY, ERRORS = "plots/perplexity.png", "plots/errors.png"
SPARSITIES = "plots/sparsities.png"
Record = dict[str, Any]


def write(
    config: Config, s: Study, models: int, records: list[Record], seconds: float
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    summary = report.summary(
        config,
        "perplexity of a decoder that is pruned in one shot",
        models=models,
        calibrations=config.calibrations,
        calibration_windows=config.calibration,
        text_sha256=checksum(s),
        results=[result(record) for record in records],
        drop_points=drop_points(records),
        seconds=seconds,
    )
    told = {}
    for r in records:
        name = name_of(r)
        told[name] = r["sample"]
        told |= {f"{name}, {k}": of["sample"] for k, of in r.get("repairs", {}).items()}
    content = "\n\n".join(f"--- {name}\n{sample}" for name, sample in told.items())
    folder.write(config.out / SAMPLES, f"{content}\n")
    return report.finish(config, write_up(config, records, summary), summary)


def result(record: Record) -> dict[str, Any]:
    """The numbers of one method at one sparsity, over models and calibrations."""
    bits = np.array(record["test_bits"])
    numbers = {
        "method": record["method"],
        "sparsity": record["sparsity"],
        "allocation": record["allocation"],
        "sparsities": record.get("sparsities", {}),
        "kept_weights": record["kept_weights"],
        "test_bits": report.over_seeds(bits),
        "test_perplexity": report.over_seeds(2**bits),
        "errors": {name: report.over_seeds(x) for name, x in record["errors"].items()},
        "sample": record["sample"],
        "repairs": {
            name: {
                "test_bits": report.over_seeds(of["test_bits"]),
                "test_perplexity": report.over_seeds(2 ** np.array(of["test_bits"])),
                "trained_weights": of["trained_weights"],
                "sample": of["sample"],
            }
            for name, of in record.get("repairs", {}).items()
        },
    }
    if "pruning_seconds" in record:
        numbers["pruning_seconds"] = report.over_seeds(record["pruning_seconds"])
    return numbers


def drop_points(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Where the perplexity of each method leaves that of the dense model, by `jp.analysis`.

    {method: {"within": the last sparsity within 1 % of dense, "sharpest": where the curve bends
    most}}, of methods with at least three fractions of uniform layers.
    """
    dense, *others = records
    curves: dict[str, dict[float, float]] = {}
    for record in others:
        if ":" not in record["sparsity"] and record["allocation"] == "uniform":
            mean = float(np.mean(2 ** np.array(record["test_bits"])))
            curves.setdefault(record["method"], {0.0: 0.0})[float(record["sparsity"])] = mean
    first = float(np.mean(2 ** np.array(dense["test_bits"])))
    points = {}
    for method, curve in curves.items():
        if len(curve) > 3:
            at = sorted(curve)
            scores = [-100.0, *(-100 * curve[sparsity] / first for sparsity in at[1:])]
            points[method] = jp.analysis.drop_point(at, scores)._asdict()
    return points


def shown(sparsity: str) -> str:
    """A sparsity in words: "50 %", or "2:4" as it is."""
    return sparsity if ":" in sparsity else f"{100 * float(sparsity):g} %"


def name_of(record: Record) -> str:
    """A row of the table."""
    if record["method"] == "dense":
        return "dense"
    return f"{method_of(record)} {shown(record['sparsity'])}"


def method_of(record: Record) -> str:
    """A method, with its allocation where that is not the usual one."""
    method, allocation = record["method"], record["allocation"]
    return method if allocation == "uniform" else f"{method} {allocation}"


def write_up(config: Config, records: Sequence[Record], summary: dict[str, Any]) -> Writeup:
    """The result, for people: a row for each method at each sparsity."""
    dense, *others = records
    last = config.sparsity[len(config.sparsity) // 2]
    at = [r for r in others if r["sparsity"] == last]
    models, times = summary["models"], summary["calibrations"]
    of = lambda n, word: f"1 {word}" if n == 1 else f"{n} {word}s"
    source = config.text or config.dataset
    drawn = {
        PERPLEXITY: Picture(
            pictures.over_sparsity(grid(config, others), 2 ** np.array(dense["test_bits"])),
            "Perplexity of a character on test data: means over models and windows, and the "
            "range. The grey line is the dense model.",
        ),
        ERRORS: Picture(
            pictures.down_the_layers(
                {method_of(r): {n: np.array(x) for n, x in r["errors"].items()} for r in at}
            ),
            f"At {shown(last)}: the squared error of each layer's output over the squared "
            "output of the dense model. It has the errors of all layers before.",
        ),
    }
    chosen = sparsities(others)
    if len(chosen) > 1:
        drawn[SPARSITIES] = Picture(
            pictures.sparsities(chosen),
            f"At {shown(middle(others))} of all weights: the sparsity of each layer, by the way it "
            "is chosen. Means over models and windows, and the range.",
        )
    return Writeup(
        title="A trained decoder pruned in one shot",
        headline=(
            f"{config.model} decoder on {source}, {of(models, 'model')}, each pruned with "
            f"{config.calibration} windows of {config.context} {config.tokens}, "
            f"{of(times, 'time')}; on test data"
        ),
        columns=("kept", "bits", "perplexity", "error", "s", *config.repairs),
        rows=[row(config, one) for one in summary["results"]],
        pictures=drawn,
        layers={name_of(r): r["sample"] for r in (dense, *at)},
        models=[f"{folder.MODEL}/METHOD-SPARSITY"],
        notes=(
            "Bits a character. Error: of the last layer's output. s: seconds for one model. Under "
            f"a repair: the perplexity after it{in_words(summary['drop_points'])}"
        ),
        saved=(
            "All samples are in `" + SAMPLES + "`. The pruned weights and the masks, a stack over "
            "models, are in {models}: read them with `recipes.common.checkpoints.load_model`."
        ),
        of_layers="Samples of the first model, all from the same random numbers",
    )


def in_words(points: dict[str, dict[str, float]]) -> str:
    """The essential sparsity of each method, behind a full stop; nothing without one."""
    each = (
        f"{method} {100 * of['within']:g} % ({100 * of['sharpest']:g} %)"
        for method, of in points.items()
    )
    told = "Pruned within 1 % of the dense perplexity (where the curve bends most): "
    return f". {told}{', '.join(each)}" if points else ""


def grid(config: Config, records: Sequence[Record]) -> dict[str, dict[str, pictures.Panel]]:
    """Perplexities: a row of panels for each allocation, a panel for each repair."""
    several = len(config.allocation) > 1
    panels: dict[str, dict[str, Any]] = {}
    for r in records:
        row = panels.setdefault(r["allocation"] if several else "", {})
        for name, of in {"no repair": r, **r.get("repairs", {})}.items():
            by_method = row.setdefault(name if r["repairs"] else "", {}).setdefault(r["method"], {})
            by_method[shown(r["sparsity"])] = 2 ** np.array(of["test_bits"])
    return panels


def middle(records: Sequence[Record]) -> str:
    """The fraction in the middle of all."""
    fractions = list(dict.fromkeys(r["sparsity"] for r in records if ":" not in r["sparsity"]))
    return fractions[len(fractions) // 2]


def sparsities(records: Sequence[Record]) -> dict[str, dict[str, np.ndarray]]:
    """By allocation and layer what was chosen at the fraction in the middle; nothing of N:M."""
    return {
        r["allocation"]: {
            path: np.array(r["sparsities"][path]) for path in sorted(r["sparsities"], key=place_of)
        }
        for r in records
        if r["sparsities"] and r["sparsity"] == middle(records)
    }


def row(config: Config, one: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one method at one sparsity; the perplexity after each repair."""
    kept = f"{round(float(np.mean(one['kept_weights']))):,}"
    cells = name_of(one), kept, f"{one['test_bits']['mean']:.3f}", number(one["test_perplexity"])
    if one["method"] == "dense":
        return (*cells, "", "", *[""] * len(config.repairs))
    last = list(one["errors"].values())[-1]
    error, seconds = (numbers["mean"] for numbers in (last, one["pruning_seconds"]))
    after = (number(one["repairs"][name]["test_perplexity"]) for name in config.repairs)
    return (*cells, f"{error:.3f}", f"{seconds:.1f}", *after)
