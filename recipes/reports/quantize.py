"""The numbers, the report and the figures of `recipes.quantize`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recipes.common import dead, folder, report
from recipes.common.figures import pareto, style
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.quantize import Study

PARETO = "plots/pareto.png"
Records = Sequence[dict[str, Any]]  # the lines of metrics.jsonl: float32, then (method, bits)


def write(study: Study, records: Records, seconds: float) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    chance = dead.chance(study.dataset.test.labels)
    arms: dict[str, Any] = {}
    for record in records:
        for t, name in enumerate(names_of(study, record)):
            arms[name] = [
                {
                    "pruned": kind,
                    "test_accuracy": report.accuracy(
                        record["test_accuracy"][t][i],
                        chance,
                        record["empty_layers"][t * len(study.kinds) + i],
                    ),
                    "size_bits": report.over_seeds(record["size"][t][i]),
                }
                for i, kind in enumerate(study.kinds)
            ]
    summary = report.summary(
        study.config,
        "test accuracy and size in bits of quantized sparse networks",
        steps=study.steps,
        chance=chance,
        arms=arms,
        seconds=seconds,
    )
    return report.finish(study.config, write_up(study, arms), summary)


def names_of(study: Study, record: dict[str, Any]) -> list[str]:
    """The names of the networks of a record, one for each teacher."""
    if record["method"] == "float32":
        return ["float32"]
    name = f"{record['method']} {record['bits']} bits"
    if record["method"] == "ptq":
        return [name]
    return [name if teacher == "none" else f"{name}, taught" for teacher in study.config.teacher]


def write_up(study: Study, arms: dict[str, Any]) -> Writeup:
    """The result, for people: a row for each method and number of bits."""
    config = study.config
    kinds: dict[str, Any] = {kind_of(name): [] for name in arms}
    for name, cells in arms.items():
        kinds[kind_of(name)] += [
            (of["size_bits"]["mean"], 1 - of["test_accuracy"]["mean"]) for of in cells
        ]
    return Writeup(
        title="Fewer bits",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {study.steps:,} steps, "
            f"then {study.tuned:,} a method: test accuracy in %, by the weights that are pruned"
        ),
        columns=study.kinds,
        rows=[
            (name, *(report.percent(of["test_accuracy"], unit="") for of in cells))
            for name, cells in arms.items()
        ],
        pictures={
            PARETO: Picture(
                pareto.errors(
                    kinds, style.looks(kinds), "size in bits, entropy coded", "Test error (%)"
                ),
                "All sparsities and numbers of bits of a method; the line joins the networks that "
                "no other network of the method beats. Means over seeds. A size counts weights, "
                "masks, and tables of values, coded by how often each is there.",
            ),
        },
        layers={},
        models=[f"{folder.MODEL}/{method}-{bits}" for method, bits in study.runs],
        notes=smallest(arms, study),
        saved="The networks, all sparsities and seeds stacked, are in {models}.",
    )


def smallest(arms: dict[str, Any], study: Study) -> str:
    """The smallest network within a point of the float network that is pruned least, in words."""
    first = arms["float32"][0]
    floor = first["test_accuracy"]["mean"] - 0.01
    near = [
        (of["size_bits"]["mean"], name, of["pruned"])
        for name, cells in arms.items()
        for of in cells
        if of["test_accuracy"]["mean"] >= floor
    ]
    bits, name, pruned = min(near)
    times = first["size_bits"]["mean"] / bits
    return (
        f"Within a point of float32 the smallest is {name}, {pruned} pruned: {bits / 8000:,.1f} "
        f"kB, {times:.1f} times smaller"
    )


def kind_of(name: str) -> str:
    """The method of an arm, with its teacher."""
    method, _, rest = name.partition(" ")
    return f"{method}, taught" if rest.endswith("taught") else method
