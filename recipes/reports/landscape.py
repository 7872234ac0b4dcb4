"""The numbers, the report and the figures of `recipes.landscape`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import dead, folder, report, study
from recipes.common.figures.planes import Curvature, contours, curvature, planes_and_lines
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.landscape import Config, Curved, Measured

SEEDS, AROUND, ALIGNED, CURVATURE = (
    f"plots/{name}.png" for name in ("seeds", "around", "alignment", "curvature")
)
ARRAYS = "plots/landscape.npz"


def write(
    config: Config,
    outcome: study.Outcome,
    measured: dict[str, Measured],
    timed: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    study.save_model(config.out / folder.MODEL, outcome, "sparse")
    folder.write(config.out / ARRAYS, arrays(measured))
    numbers = study.numbers(outcome)
    for arm, own in measured.items():
        numbers["arms"][arm] |= of_arm(own)
    summary = report.summary(
        config,
        "the training loss between and around seeds, and its curvature",
        examples=config.examples,
        measuring_seconds=round(seconds, 2),
        hessian_vector_product=timed,
        **numbers,
    )
    return report.finish(config, write_up(config, outcome, measured, summary), summary)


def of_arm(own: Measured) -> dict[str, Any]:
    """The numbers of an arm beside its accuracy."""
    curved, aligned = own.curved, own.aligned
    numbers: dict[str, Any] = {
        "weights": curved.dimension,
        "largest_eigenvalue": report.over_seeds(curved.eigenvalues[:, 0]),
        "eigenvalues": curved.eigenvalues.tolist(),
        "eigenvalue_errors": curved.errors.tolist(),
        "trace": report.over_seeds(curved.trace),
        "trace_standard_errors": curved.trace_error.tolist(),
        "trace_per_weight": report.over_seeds(curved.trace / curved.dimension),
    }
    for when, barriers in (aligned.barriers if aligned else {}).items():
        for name, values in barriers.items():
            numbers[f"{name}_barrier_{when}_matching"] = report.over_seeds(values)
    for when, overlaps in (aligned.overlaps if aligned else {}).items():
        numbers[f"mask_overlap_{when}_matching"] = report.over_seeds(overlaps)
    return numbers


def arrays(measured: dict[str, Measured]) -> bytes:
    """The planes and the spectra as numbers (.npz), for other plots."""
    held: dict[str, Any] = {}
    for arm, own in measured.items():
        panels = {"seeds": own.through, "around": own.around}
        if own.aligned is not None:
            panels["alignment"] = own.aligned.panel
        for name, panel in panels.items():
            held |= {f"{arm}/{name}/{k}": getattr(panel, k) for k in ("xs", "ys", "losses")}
            held[f"{arm}/{name}/marks"] = np.array([mark[1:] for mark in panel.marks])
        held |= {f"{arm}/spectrum/{k}": getattr(own.curved, k) for k in ("nodes", "weights")}
    file = io.BytesIO()
    np.savez_compressed(file, **held)
    return file.getvalue()


def densities(arms: Mapping[str, Curved]) -> dict[str, Curvature]:
    """The spectra on one grid, drawn with one width: a hundredth of their range."""
    nodes = [own.nodes for own in arms.values()]
    low, high = min(x.min() for x in nodes), max(x.max() for x in nodes)
    width = (high - low) / 100
    grid = np.linspace(low - 4 * width, high + 4 * width, 600)

    def density(own: Curved, seed: int) -> np.ndarray:
        nodes, weights = jnp.asarray(own.nodes[seed]), jnp.asarray(own.weights[seed])
        spectrum = jp.analysis.Spectrum(nodes, weights, own.dimension)
        return np.asarray(jp.analysis.spectral_density(spectrum, grid, width))

    return {
        arm: Curvature(
            own.eigenvalues, grid, np.stack([density(own, i) for i in range(len(own.nodes))])
        )
        for arm, own in arms.items()
    }


def pictures(config: Config, measured: dict[str, Measured]) -> dict[str, Picture]:
    """The figures, by their path below the folder of the run."""
    label, seed = "Training loss", config.seed
    of = {arm.capitalize(): own for arm, own in measured.items()}
    through = {arm: own.through for arm, own in of.items()}
    around = {arm: own.around for arm, own in of.items()}
    drawn = {
        SEEDS: Picture(
            contours(through, label, *2 * ["Distance in weight space"]),
            f"Training loss on the plane through seeds {seed} to {seed + 2}.",
        ),
        AROUND: Picture(
            contours(around, label, "First random direction", "Second random direction"),
            f"Training loss around seed {seed}, along two random directions, each filter as long "
            "as the network's; directions of the sparse one live in its kept weights.",
        ),
    }
    aligned = {arm: own.aligned for arm, own in of.items() if own.aligned}
    if aligned:
        panels = {arm: own.panel for arm, own in aligned.items()}
        lines = {arm: list(own.lines.values()) for arm, own in aligned.items()}
        drawn[ALIGNED] = Picture(
            planes_and_lines(panels, label, lines, label),
            f"Training loss on the plane through seed {seed}, seed {seed + 1}, and the latter with "
            "its neurons matched to the former's; below, on the lines from the one to the other.",
        )
    drawn[CURVATURE] = Picture(
        curvature(densities({arm: own.curved for arm, own in measured.items()})),
        "The Hessian of the training loss over the kept weights: its largest eigenvalues (mean and "
        "standard deviation over seeds), and the density of all of them.",
    )
    return drawn


def write_up(
    config: Config, outcome: study.Outcome, measured: dict[str, Measured], summary: dict[str, Any]
) -> Writeup:
    """The result, for people."""
    arms = [summary["arms"][arm] for arm in ("dense", "sparse")]

    def number(numbers: dict[str, Any]) -> str:
        return f"{numbers['mean']:.3g} ± {numbers['std']:.2g}"

    def row(name: str, say: Callable[[dict], str]) -> tuple[str, ...]:
        return name, *map(say, arms)

    rows = [
        row("test accuracy", lambda arm: report.percent(arm["test_accuracy"])),
        row("weights", lambda arm: f"{arm['weights']:,}"),
        row("largest eigenvalue", lambda arm: number(arm["largest_eigenvalue"])),
        row("trace", lambda arm: number(arm["trace"])),
        row("trace per weight", lambda arm: number(arm["trace_per_weight"])),
    ]
    if measured["dense"].aligned:
        for name, say in (("loss", number), ("error", report.percent)):
            for when in ("before", "after"):
                heights = [
                    dead.NOT_MEASURED
                    if dead.at_chance(arm["test_accuracy"])
                    else say(arm[f"{name}_barrier_{when}_matching"])
                    for arm in arms
                ]
                rows.append((f"{name} barrier, {when} matching", *heights))
        for when in ("before", "after"):
            overlap = number(arms[1][f"mask_overlap_{when}_matching"])
            rows.append((f"mask overlap, {when} matching", "", overlap))
    timed = summary["hessian_vector_product"]
    sparsity = f"{100 * summary['arms']['sparse']['sparsity']:.4g} %"
    masks = f" (the masks of {config.masks})" if config.masks else ""
    return Writeup(
        title="The loss landscape",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} "
            f"steps, sparsity {sparsity}{masks}, measured on {config.examples:,} training "
            "examples: mean ± standard deviation over seeds (barriers and overlaps: over "
            "pairs of seeds)"
        ),
        columns=("dense", "sparse"),
        rows=rows,
        notes=(
            f"A Hessian-vector product takes {timed['ratio']:.2f} gradients "
            f"({timed['product_ms']:.1f} ms); measuring took "
            f"{summary['measuring_seconds']:.0f} s beside the training"
        ),
        pictures=pictures(config, measured),
        layers={"sparse": study.layer_report(outcome, "sparse")},
        models=[folder.MODEL],
    )
