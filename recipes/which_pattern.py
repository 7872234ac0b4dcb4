"""Which pattern pays on your machine, and when: `python -m recipes.which_pattern --help`.

Times the product x @ kernel under random masks of each pattern, beside the dense product, at
several batch sizes and sparsities. Nothing is learned and no data is read. Prints a table and draws
it. It takes about a minute for each shape.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax

import jaxprune as jp
from jaxprune.fast.worth import PATTERNS
from recipes.bench import machine
from recipes.common import cli, flags, folder, report, settings
from recipes.common.figures import worth
from recipes.common.report import Picture, Writeup
from recipes.common.terminal import counted

PICTURE = "plots/ratios.png"
SHAPE = re.compile(r"[1-9]\d*x[1-9]\d*")


@dataclass(frozen=True)
class Config(settings.Run):
    """The pattern that pays on this machine, and from which sparsity on."""

    out: Path = Path("runs/which_pattern")
    shapes: Annotated[tuple[str, ...], flags.DISTINCT] = ("1024x1024",)
    """Kernels, inputs x outputs."""
    batches: Annotated[tuple[int, ...], flags.at_least(1), flags.DISTINCT] = (1, 32, 256)
    """The numbers of rows of the inputs."""
    sparsities: Annotated[tuple[float, ...], flags.within("[0, 1)"), flags.DISTINCT] = (
        *(0.5, 0.75, 0.9, 0.95),
    )
    """The fractions of weights that are pruned, ascending."""
    rounds: flags.Count = 7
    """How often each product is timed, in another random order each time."""
    cpu_time: bool = False
    """Count the CPU time of this process, not seconds: on a busy machine. Use one core then."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        for shape in self.shapes:
            if not SHAPE.fullmatch(shape):
                yield f"--shapes are inputs x outputs, such as 1024x1024, got '{shape}'"
        if list(self.sparsities) != sorted(self.sparsities):
            yield f"--sparsities must ascend, got {' '.join(map(str, self.sparsities))}"


def which_pattern(config: Config) -> dict[str, Any]:
    """Measures, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    folder.check_out(config.out, config.overwrite)
    folder.start(config.out, cli.to_yaml(config), config.overwrite)
    began = time.perf_counter()
    shapes = [(int(n), int(m)) for n, m in (shape.split("x") for shape in config.shapes)]
    count = len(shapes) * len(PATTERNS) * len(config.sparsities) * len(config.batches)
    with counted("products", count) as done:
        table = jp.fast.patterns_worth_it(
            shapes,
            config.batches,
            config.sparsities,
            rounds=config.rounds,
            clock=time.process_time if config.cpu_time else time.perf_counter,
            done=lambda: done(""),
        )
    summary = {
        "recipe": "which_pattern",
        "studies": "dense time / time of sparse products, by pattern, sparsity and batch",
        "clock": "CPU time of the process" if config.cpu_time else "seconds",
        "sparsities": list(config.sparsities),
        "rows": [row._asdict() for row in table.rows],
        "seconds": round(time.perf_counter() - began, 2),
        "peak_memory_bytes": report.peak_memory_bytes(),
        "environment": machine(),
    }
    columns = [*(f"{100 * s:g} %" for s in config.sparsities), "pays"]
    writeup = Writeup(
        title="Which pattern",
        headline=f"dense time / time of x @ kernel, {summary['clock']}, {jax.default_backend()}",
        columns=columns,
        rows=[_cells(row) for row in table.rows],
        pictures={
            PICTURE: Picture(
                worth.ratios(table),
                "Dense time over the time of the fastest form, by sparsity. A pattern pays above "
                "the line.",
            )
        },
        layers={},
        models=[],
        saved="",
        logged=False,
    )
    return report.finish(config, writeup, summary)


def _cells(row: jp.fast.Worth) -> list[str]:
    pays = "never" if row.pays_from is None else f"from {100 * row.pays_from:g} %"
    where = f"{'x'.join(map(str, row.shape))}, batch {row.batch}: {row.pattern}"
    return [where, *(f"{ratio:.2g}" for ratio in row.ratios), pays]


main = cli.command(Config, which_pattern)

if __name__ == "__main__":
    main()
