"""The numbers, the report and the figure of `recipes.embeddings`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from recipes.common import folder, report
from recipes.common.figures import pareto, style
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.embeddings import Study

PARETO = "plots/pareto.png"
Cells = dict[str, dict[int, dict[int, Any]]]  # method -> bits -> dimensions -> numbers


def write(study: Study, records: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    cells = cells_of(study, records)
    arms = {
        name_of(method, bits): [
            {"dims": r, "bits": r * bits, "map": of["map"], "rank_1": of["rank_1"]}
            for r, of in sorted(row.items(), reverse=True)
        ]
        for method, rows in cells.items()
        for bits, row in rows.items()
    }
    summary = report.summary(
        study.config,
        "retrieval of held-out classes by embeddings of fewer dimensions and bits",
        steps=study.steps,
        arms=arms,
        seconds=seconds,
    )
    return report.finish(study.config, write_up(study, cells), summary)


def cells_of(study: Study, records: Sequence[dict[str, Any]]) -> Cells:
    """The numbers over seeds; pruning begins with all dimensions of slicing."""
    most, cells = study.config.dims[0], {}
    for method in study.config.method:
        rows: dict[int, dict[int, Any]] = {bits: {} for bits in study.config.bits}
        for record in records:
            for i, r in enumerate(record["dims"]):
                first = method == "pruned" and record["method"] == "slicing" and r == most
                if record["method"] == method or first:
                    for j, bits in enumerate(study.config.bits):
                        keys = ("map", "rank_1")
                        of = {key: report.over_seeds(record[key][i][j]) for key in keys}
                        rows[bits][r] = of
        cells[method] = rows
    return cells


def write_up(study: Study, cells: Cells) -> Writeup:
    """The result, for people: a row for each method and number of bits."""
    config = study.config
    points = {
        method: [
            (r * bits, 1 - of["map"]["mean"]) for bits, row in rows.items() for r, of in row.items()
        ]
        for method, rows in cells.items()
    }
    return Writeup(
        title="Smaller embeddings",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {study.steps:,} steps a "
            f"training: mean average precision of {config.held_out} held-out classes in %, by "
            "dimensions"
        ),
        columns=[str(r) for r in config.dims],
        rows=[
            (
                name_of(method, bits),
                *(report.percent(row[r]["map"], unit="") for r in config.dims),
            )
            for method, rows in cells.items()
            for bits, row in rows.items()
        ],
        pictures={
            PARETO: Picture(
                pareto.errors(points, style.looks(points), "bits of an embedding", "1 - mAP (%)"),
                "All dimensions and numbers of bits of a method; the line joins the embeddings "
                "that no other embedding of the method beats. Means over seeds.",
            ),
        },
        layers={},
        models=[f"{folder.MODEL}/{name}-{dims[0]}" for name, dims in study.runs],
        notes=smallest(study, cells),
        saved="The networks, all dimensions, bits and seeds stacked, are in {models}.",
    )


def name_of(method: str, bits: int) -> str:
    """The name of an arm: a method with so many bits."""
    return f"{method} {bits} {'bit' if bits == 1 else 'bits'}"


def smallest(study: Study, cells: Cells) -> str:
    """The smallest embedding within 4 points of the first, and the best 96 times smaller one."""
    config = study.config
    whole = config.dims[0] * max(config.bits)
    full = next(iter(cells.values()))[max(config.bits)][config.dims[0]]["map"]["mean"]
    sizes = [
        (r * b, f"{name_of(method, b)}, {r} dimensions", of["map"]["mean"], of["rank_1"]["mean"])
        for method, rows in cells.items()
        for b, row in rows.items()
        for r, of in row.items()
    ]
    told = lambda size, name, precision, rank_1: (
        f"{name}: {whole / size:.0f} times smaller, mAP {100 * precision:.2f} % in place of "
        f"{100 * full:.2f} %, rank-1 {100 * rank_1:.2f} %"
    )
    near = [x for x in sizes if x[2] >= full - 0.04]
    small = [x for x in sizes if 96 * x[0] <= whole]
    texts = []
    if near:
        texts.append(f"Within 4 points of mAP the smallest is {told(*min(near, key=_size))}")
    if small:
        texts.append(f"Of those 96 times smaller or more the best is {told(*max(small, key=_map))}")
    return ". ".join(texts)


def _size(x: tuple[int, str, float, float]) -> int:
    return x[0]


def _map(x: tuple[int, str, float, float]) -> float:
    return x[2]
