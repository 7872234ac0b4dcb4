"""The numbers and the table of `recipes.published`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import jaxprune as jp
from recipes.common import cli, folder, magika, report
from recipes.common.onnx.timed import AGAIN, ENGINES
from recipes.common.report import Writeup

if TYPE_CHECKING:
    from recipes.published import Study


def write(
    s: Study,
    kept: Mapping[str, Any],
    told: Mapping[str, Mapping[str, Sequence[np.ndarray]]],
    bits: int,
    seconds: Mapping[str, Mapping[str, Any]],
    took: float,
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds.

    Args:
      kept: the channels that are left, bool (size,) by group.
      told: what each network says of the files held out, probabilities (n, types) of each seed.
      bits: of the smaller network's weights on their grid.
      seconds: of a file, by run and batch.
    """
    full, small = (jp.structured.cost(s.structure, of) for of in (None, kept))
    wanted = {test: each[0].argmax(1) for test, each in told["full"].items()}
    arms = {}
    for name, of_tests in told.items():
        cost = full if name == "full" else small
        own = {test: [p.argmax(1) for p in each] for test, each in of_tests.items()}
        arms[name] = {
            "same_answers": {
                test: report.over_seeds([np.mean(one == wanted[test]) for one in each])
                for test, each in own.items()
            },
            "by_extension": {
                test: report.over_seeds(
                    [magika.by_extension(s.magika, one, s.tests[test].extensions) for one in each]
                )
                for test, each in own.items()
            },
            "bits": bits if name.endswith("bits") else 32 * cost.weights,
            "flops": cost.flops,
        }
    summary = {
        "recipe": "published",
        "studies": "a published network at a share of its FLOPs",
        "seeds": s.config.seeds,
        "files": {"tuning": len(s.rest.paths), "test": s.config.test_files},
        "types": {test: len(np.unique(answers)) for test, answers in wanted.items()},
        "widths": {name: [int(np.sum(mask)), len(mask)] for name, mask in kept.items()},
        "arms": arms,
        "latency": seconds,
        "seconds": round(took, 2),
        "peak_memory_bytes": report.peak_memory_bytes(),
        "environment": folder.environment(),
    }
    return report.finish(s.config, write_up(s, summary), summary)


def write_up(s: Study, summary: Mapping[str, Any]) -> Writeup:
    """The result, for people."""
    arms, latency, files = summary["arms"], summary["latency"], summary["files"]
    types = list(summary["types"].values())
    batches = list(next(iter(latency.values())))
    runs = [(engine, batch) for engine in ENGINES for batch in batches]
    rows = []
    for name, arm in arms.items():
        times = [
            f"{1e3 * latency[f'{name}, {engine}'][batch]['seconds']['median']:.2f} ms"
            if f"{name}, {engine}" in latency
            else ""
            for engine, batch in runs
        ]
        rows.append(
            (
                name,
                *(report.percent(x) for x in arm["same_answers"].values()),
                report.percent(arm["by_extension"]["as they come"]),
                f"{arm['bits'] / 8e6:.2f} MB",
                f"{arm['flops'] / 1e6:.0f} M",
                *times,
            )
        )
    ratios = lambda name: [
        latency[f"{name}, {engine}"][batch]["times_as_fast"] for engine, batch in runs
    ]
    faster = [f"{x['median']:.2f}x" for x in ratios("tuned")]
    noise = [f"{x['low']:.2f}-{x['high']:.2f}x" for x in ratios(AGAIN)]
    rows += [("full / tuned", *[""] * 5, *faster), ("A/A", *[""] * 5, *noise)]
    widths = ", ".join(f"{left} of {size}" for left, size in summary["widths"].values())
    command = cli.program(type(s.config))
    return Writeup(
        title="A published network, pruned",
        headline=(
            f"Magika: answers that are those of the full network, for {files['test']:,} files held "
            f"out as they come ({types[0]} types) and {files['test']:,} of all extensions "
            f"({types[1]} types); {s.config.steps} steps of tuning with {files['tuning']:,} files, "
            f"{s.config.seeds} seeds; times of a file, in batches"
        ),
        columns=[
            "as they come", "all extensions", "right by extension", "weights", "FLOPs",
            *(f"{engine}, {batch}" for engine, batch in runs),
        ],
        rows=rows,
        pictures={},
        layers={"channels": str(s.structure)},
        models=[f"{folder.MODEL}/magika.onnx"],
        notes=f"Channels that are left: {widths}",
        saved=f"The network of the first seed of `{command}` is {{models}}, for onnxruntime.",
        of_layers="What is pruned",
        logged=False,
    )  # fmt: skip
