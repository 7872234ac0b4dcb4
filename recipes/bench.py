"""The cost of masks: `python -m recipes.bench --help`.

Times optimizer steps, selection, compilation, many seeds and their barriers beside dense twins,
sorting, single runs and forward passes, compacted networks, networks in blocks, distilled images,
calibration, and checkpoints; counts bytes. Nothing is learned and no data is read.
Run it on a quiet machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax

from recipes.benchmarks import section
from recipes.benchmarks.barriers import barriers
from recipes.benchmarks.calibrating import calibrating
from recipes.benchmarks.checkpoints import checkpoints
from recipes.benchmarks.compact import forward_passes
from recipes.benchmarks.distilling import distilling
from recipes.benchmarks.fast import faster
from recipes.benchmarks.memory import bytes_a_weight
from recipes.benchmarks.section import Plan, Section
from recipes.benchmarks.seeds import many_seeds
from recipes.benchmarks.selection import selection
from recipes.benchmarks.steps import optimizer_step, vmapped_step
from recipes.benchmarks.training import compile_time
from recipes.common import cli, flags, folder, report, settings, timing
from recipes.common.folder import RecipeError
from recipes.common.models import MODELS

RATIOS = "plots/ratios.png"
ASKED = "Targets"
TIMED = tuple(name for name in MODELS if name != "vit")
BENCHMARKS: dict[str, Callable[[Plan], list[Section]]] = {
    "step": optimizer_step,
    "selection": selection,
    "vmap": vmapped_step,
    "compile": compile_time,
    "memory": bytes_a_weight,
    "checkpoints": checkpoints,
    "seeds": many_seeds,
    "barriers": barriers,
    "compact": forward_passes,
    "fast": faster,
    "distill": distilling,
    "calibration": calibrating,
}


@dataclass(frozen=True)
class Config(settings.Run):
    """The cost of masks: times beside dense twins, in one process and random order; and bytes."""

    out: Path = Path("runs/bench")
    weights: Annotated[float, flags.within("[100, 2130706432)")] = 10e6
    """Weights of the optimizer steps and selections; under vmap each seed has a tenth of them."""
    leaves: flags.Count = 10
    """Kernels that share the weights."""
    seeds: flags.Count = 8
    """Seeds in one program, where there are several."""
    repeats: flags.Count = 15
    """Rounds: how often each cell is timed. Slow cells, such as sorts, are timed less often."""
    compiles: flags.Count = 5
    """How often each training step is compiled; ResNet-20 at most twice."""
    models: Annotated[tuple[str, ...], flags.choice(TIMED), flags.DISTINCT] = TIMED[1:]
    """The networks whose training steps are compiled."""
    batch_size: flags.Count = 128
    """Examples of a training step, for each seed."""
    examples: flags.Count = 10_000
    """Examples that a network between two seeds is measured on."""
    only: Annotated[tuple[str, ...], flags.choice(BENCHMARKS), flags.DISTINCT] = tuple(BENCHMARKS)
    """The benchmarks to run."""
    sample_ms: Annotated[float, flags.within("[0, 10000]")] = 20.0
    """The least length of a sample in ms: shorter steps are timed several together."""
    seed: Annotated[int, flags.at_least(0)] = 0
    """The seed of the random numbers, and of the order in which cells are timed."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        if self.weights < 100 * self.leaves:
            yield f"--weights must be at least 100 for each of --leaves {self.leaves}"
        if "barriers" in self.only and self.seeds < 2:
            yield f"--seeds, with pairs for barriers, must be at least 2, got {self.seeds}"


def bench(config: Config) -> dict[str, Any]:
    """Measures, prints tables, writes the folder `config.out`; returns what summary.json holds."""
    plan = plan_of(config)
    names = [name for name in BENCHMARKS if name in config.only]
    folder.check_out(config.out, config.overwrite)
    folder.start(config.out, cli.to_yaml(config), config.overwrite)

    began = time.perf_counter()
    environment = machine()
    print(", ".join(f"{name} {value}" for name, value in environment.items()), flush=True)
    sections = list(_sections(names, plan))
    summary = {
        "recipe": "bench",
        "studies": "time and memory of masks beside dense training",
        **plan._asdict(),
        "seconds": round(time.perf_counter() - began, 2),
        "sections": {own.name: own.numbers for own in sections},
        "figures": [figure.to_dict() for own in sections for figure in own.figures],
        "environment": environment,
    }
    save(config, sections, summary)
    if goals := [figure for own in sections for figure in own.figures]:
        section.to_terminal(ASKED, section.FIGURE_COLUMNS, section.figure_rows(goals))
    print(f"Everything is in {config.out}: see {config.out / folder.REPORT}")
    return summary


def _sections(names: Sequence[str], plan: Plan) -> Iterator[Section]:
    """What the benchmarks `names` find, each printed at once."""
    with timing.no_compilation_cache():
        for name in names:
            try:
                found = BENCHMARKS[name](plan)
            except (jax.errors.JaxRuntimeError, MemoryError) as error:
                if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                    raise RecipeError(
                        f"out of memory in '{name}'; choose fewer --weights"
                    ) from error
                raise
            for own in found:
                section.to_terminal(own.headline, own.columns, own.rows)
            yield from found


def plan_of(config: Config) -> Plan:
    """The sizes that all benchmarks share."""
    return Plan(
        weights=int(config.weights),
        leaves=config.leaves,
        seeds=config.seeds,
        repeats=config.repeats,
        compiles=config.compiles,
        models=tuple(name for name in TIMED if name in config.models),
        batch_size=config.batch_size,
        examples=config.examples,
        seed=config.seed,
        least_seconds=config.sample_ms / 1e3,
    )


def machine() -> dict[str, Any]:
    """The environment of the numbers."""
    return {
        "backend": jax.default_backend(),
        **folder.environment(),
        "jaxlib": jax.lib.__version__,
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }


def save(config: Config, sections: Sequence[Section], summary: dict[str, Any]) -> None:
    """Writes the picture, summary.json and report.md."""
    about = [f"{report.in_words(summary['environment'])}.", f"Run it again: `{cli.again(config)}`"]
    if goals := [figure for own in sections for figure in own.figures]:
        table = report.markdown_table(section.FIGURE_COLUMNS, section.figure_rows(goals))
        about.append(f"## {ASKED}\n\n{table}")
    if any(own.bars for own in sections):
        folder.write(config.out / RATIOS, section.ratios(sections))
        about.append(f"![Ratios]({RATIOS})\n\n{section.CAPTION}")
    folder.write_json(config.out / folder.SUMMARY, summary)
    text = section.to_markdown("Benchmark", sections, about, [section.NOTE])
    folder.write(config.out / folder.REPORT, text)


main = cli.command(Config, bench)

if __name__ == "__main__":
    main()
