"""What masks cost: `python -m recipes.bench --help`.

Times optimizer steps, selection, compilation, many seeds and their barriers beside dense twins,
sorting, single runs and forward passes, compacted networks, and checkpoints; counts bytes. Nothing
is learned and no data is read.
Run it on a quiet machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from recipes.benchmarks import picture, writeup
from recipes.benchmarks.barriers import barriers
from recipes.benchmarks.checkpoints import checkpoints
from recipes.benchmarks.compact import forward_passes
from recipes.benchmarks.memory import bytes_a_weight
from recipes.benchmarks.section import Plan, Section
from recipes.benchmarks.seeds import many_seeds
from recipes.benchmarks.selection import selection
from recipes.benchmarks.steps import optimizer_step, vmapped_step
from recipes.benchmarks.training import compile_time
from recipes.common import cli, folder, models, timing
from recipes.common.folder import RecipeError

PROGRAM = "python -m recipes.bench"
RATIOS = "plots/ratios.png"
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
}


@dataclass(frozen=True)
class Config:
    """What masks cost: times beside dense twins, in one process and in random order; and bytes."""

    weights: float = 10e6
    """Weights of the optimizer steps and selections; under vmap each seed has a tenth of them."""
    leaves: int = 10
    """Kernels that share the weights."""
    seeds: int = 8
    """Seeds in one program, where there are several."""
    repeats: int = 15
    """Rounds: how often each cell is timed; slow ones (sorts, for one) less often."""
    compiles: int = 5
    """How often each training step is compiled; ResNet-20 at most twice."""
    models: str = "lenet,conv,resnet20"
    """Whose training steps are compiled, with commas between."""
    batch_size: int = 128
    """Examples of a training step, for each seed."""
    examples: int = 10_000
    """Examples that a network between two seeds is measured on."""
    only: str = ",".join(BENCHMARKS)
    """Which benchmarks to run, with commas between."""
    sample_ms: float = 20.0
    """What a sample lasts at least: shorter steps are timed several together, in ms."""
    seed: int = 0
    """Of the random numbers, and of the order in which cells are timed."""

    out: Path = Path("runs/bench")
    """The folder to write to."""
    overwrite: bool = False
    """Replace the run in --out."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, bench, PROGRAM, argv)


def bench(config: Config) -> dict[str, Any]:
    """Measures, prints tables, writes the folder `config.out`; returns what summary.json holds."""
    plan, names = plan_of(config), _listed("--only", config.only, tuple(BENCHMARKS))
    if "barriers" in names:
        cli.at_least("--seeds, with pairs for barriers,", plan.seeds, 2)
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
        "sections": {section.name: section.numbers for section in sections},
        "figures": [figure.to_dict() for section in sections for figure in section.figures],
        "environment": environment,
    }
    save(config, sections, summary)
    writeup.figures_to_terminal([figure for section in sections for figure in section.figures])
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
            for section in found:
                writeup.to_terminal(section)
            yield from found


def plan_of(config: Config) -> Plan:
    """The sizes, checked; raises `RecipeError` for what makes no sense."""
    for flag in ("leaves", "seeds", "repeats", "compiles", "batch_size", "examples"):
        cli.at_least(f"--{flag.replace('_', '-')}", getattr(config, flag), 1)
    cli.at_least("--seed", config.seed, 0)
    cli.in_range("--weights", config.weights, 100 * config.leaves, 2**31 - 2**24, "[)")
    cli.in_range("--sample-ms", config.sample_ms, 0, 1e4)
    return Plan(
        weights=int(config.weights),
        leaves=config.leaves,
        seeds=config.seeds,
        repeats=config.repeats,
        compiles=config.compiles,
        models=_listed("--models", config.models, models.MODELS),
        batch_size=config.batch_size,
        examples=config.examples,
        seed=config.seed,
        least_seconds=config.sample_ms / 1e3,
    )


def machine() -> dict[str, Any]:
    """What the numbers depend on beside the flags."""
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
    has_bars = any(section.bars for section in sections)
    if has_bars:
        folder.write(config.out / RATIOS, picture.ratios(sections))
    command = _command(config)
    report = writeup.to_markdown(
        sections, RATIOS if has_bars else None, folder.SUMMARY, command, summary["environment"]
    )
    folder.write_json(config.out / folder.SUMMARY, summary)
    folder.write(config.out / folder.REPORT, report)


def _listed(flag: str, value: str, choices: Sequence[str]) -> tuple[str, ...]:
    """The names in "a,b", each one of `choices`, in their order."""
    names = [name.strip() for name in value.split(",")]
    for name in names:
        cli.one_of(flag, name, choices)
    return tuple(name for name in choices if name in names)


def _command(config: Config) -> str:
    """The command line with the flags that are not at their defaults."""
    default = Config()
    flags = [
        f"--{flag.replace('_', '-')} {f'{value:g}' if isinstance(value, float) else value}"
        for flag, value in vars(config).items()
        if value != getattr(default, flag) and flag not in ("out", *cli.NOT_SAVED)
    ]
    return " ".join((PROGRAM, *flags, "--out NEW_FOLDER"))


if __name__ == "__main__":
    main()
