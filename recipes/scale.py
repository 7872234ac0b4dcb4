"""A 7B decoder compiled for 64 and 256 devices: `python -m recipes.scale --help`.

Compiles the sharded training step from shapes, dense and with gradual pruning by one threshold over
all layers, and the calibration of one batch; reports the memory of a device and the communication
between devices. The devices are virtual CPUs: nothing is computed, and only the compiler uses
memory.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax

import jaxprune as jp
from recipes.benchmarks.section import Section, to_markdown, to_terminal
from recipes.common import cli, flags, folder, report, settings
from recipes.common.folder import RecipeError
from recipes.sharded import collectives, compiled, decoder, layout

COLUMNS = ("arguments MB", "temporary MB", "all-gathers", "all-reduces", "others", "MB moved")
PARTS = {
    "training": {
        "dense": "dense step",
        "sparse": "sparse step, idle",
        "update": "its mask update, a pass",
    },
    "calibration": {
        "forward": "forward pass",
        "statistics": "statistics",
        "in_order": "prune_in_order, Wanda 2:4",
    },
}
NOTE = """\
All numbers are of one device. Arguments are the params, the optimizer's state with its masks, and
the batch; results take their place. Moved is what a device gets from collectives in a step; loops
count as often as they run, a search for a threshold once: it makes at most 16 passes, or 32 with
ties. XLA's CPU backend multiplies bfloat16 in float32: temporary memory, and what the dense step
moves, are up to twice those of a TPU or GPU."""


@dataclass(frozen=True)
class Config(settings.Run):
    """The cost of masks in the sharded training step of a decoder; compiled and never run."""

    out: Path = Path("runs/scale")
    devices: Annotated[tuple[int, ...], flags.at_least(1), flags.DISTINCT] = (64, 256)
    """The numbers of devices, one table each; their mesh is as square as it can be."""
    layers: flags.Count = 32
    """Layers of the decoder; these defaults are those of LLaMA-7B."""
    width: flags.Count = 4096
    """Features of a token."""
    heads: flags.Count = 32
    """Attention heads."""
    hidden: flags.Count = 11_008
    """Features inside the gated MLP."""
    words: flags.Count = 32_000
    """Words of the vocabulary."""
    tokens: flags.Count = 2048
    """Tokens of a sequence; each device of the data axis has one sequence."""
    sparsity: flags.Fraction = 0.5
    """The fraction of weights that are pruned at the end."""
    every: flags.Count = 100
    """Steps between updates of the masks."""
    only: Annotated[tuple[str, ...], flags.choice(PARTS), flags.DISTINCT] = tuple(PARTS)
    """The parts to compile; calibration evaluates each layer by itself, which takes longer."""

    @property
    def sizes(self) -> decoder.Sizes:
        """The sizes of the decoder."""
        return decoder.Sizes(self.layers, self.width, self.heads, self.hidden, self.words)

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        if self.width % (2 * self.heads):
            yield (
                f"--width {self.width} must be an even number of features for each of "
                f"{self.heads} heads"
            )
            return
        for devices in self.devices:
            mesh = jax.sharding.AbstractMesh(compiled.shape_of(devices), ("data", "model"))
            try:
                layout.on_mesh(decoder.shapes(self.sizes), decoder.specs(), mesh)
            except RecipeError as error:
                yield str(error)
            if self.heads % mesh.shape["model"]:
                yield (
                    f"--heads {self.heads} can't be split over the {mesh.shape['model']} devices "
                    f"of the model axis of {devices}"
                )


def scale(config: Config) -> dict[str, Any]:
    """Compiles, prints tables, writes the folder `config.out`; returns what summary.json holds."""
    folder.check_out(config.out, config.overwrite)
    folder.start(config.out, cli.to_yaml(config), config.overwrite)
    params = decoder.shapes(config.sizes)
    weights, prunable = (
        sum(x.size for x in jax.tree.leaves(t)) for t in (params, jp.kernels(params))
    )
    print(f"{weights:,} weights, {prunable:,} of them prunable; compiling ...", flush=True)
    sections, numbers = [], dict[str, dict[str, Any]]()
    for devices in config.devices:
        for part in config.only:
            found = compile_elsewhere(config, part, devices)
            sections.append(section(part, devices, found))
            numbers.setdefault(str(devices), {}).update(sections[-1].numbers)
            to_terminal(sections[-1].headline, COLUMNS, sections[-1].rows)
    summary = {
        "recipe": "scale",
        "studies": "memory and communication of sharded training and calibration, never run",
        "weights": weights,
        "prunable_weights": prunable,
        "devices": numbers,
        "environment": folder.environment(),
    }
    folder.write_json(config.out / folder.SUMMARY, summary)
    about = [
        f"{weights:,} weights, {prunable:,} of them prunable; "
        f"{report.in_words(summary['environment'])}.",
        f"Run it again: `{cli.again(config)}`",
    ]
    title = "A sharded decoder, compiled and never run"
    folder.write(config.out / folder.REPORT, to_markdown(title, sections, about, [NOTE]))
    folder.unlock(config.out)
    print(f"{NOTE}\n\nEverything is in {config.out}: see {config.out / folder.REPORT}")
    return summary


def compile_elsewhere(config: Config, part: str, devices: int) -> dict[str, compiled.Compiled]:
    """A part, in a process with this number of devices."""
    wanted = {"sizes": config.sizes._asdict(), "devices": devices, "tokens": config.tokens}
    if part == "training":
        wanted |= {"sparsity": config.sparsity, "every": config.every}
    flags = (
        f"--xla_force_host_platform_device_count={devices}",
        "--xla_backend_optimization_level=0",  # machine code that never runs
        "--xla_llvm_disable_expensive_passes=true",
    )
    command = [sys.executable, "-m", "recipes.sharded.compiled", part, json.dumps(wanted)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if child.returncode:
        raise RecipeError(
            f"compiling for {devices} devices ended with code {child.returncode}: see above; "
            "where memory was short, choose fewer --layers"
        )
    return {name: compiled.from_dict(own) for name, own in json.loads(child.stdout).items()}


def section(part: str, devices: int, found: dict[str, compiled.Compiled]) -> Section:
    """The table of a part on one number of devices."""
    rows = {title: (found[name], found[name].always) for name, title in PARTS[part].items()}
    if part == "training":
        rows[PARTS[part]["update"]] = found["update"], found["sparse"].in_branches
    shape = " x ".join(str(n) for n in compiled.shape_of(devices))
    return Section(
        name=f"{part} {devices}",
        headline=f"{part.capitalize()}, {devices} devices, {shape} of data and model",
        columns=COLUMNS,
        rows=[[name, *_cells(own, moved)] for name, (own, moved) in rows.items()],
        numbers={name: compiled.to_dict(own) for name, own in found.items()},
    )


def _cells(own: compiled.Compiled, moved: dict[str, collectives.Moved]) -> list[str]:
    whole = collectives.total(moved)
    calls = [moved[kind].calls if kind in moved else 0 for kind in ("all-gather", "all-reduce")]
    megabytes = [_digits(n / 1e6) for n in (own.arguments, own.temporary)]
    return [*megabytes, *map(str, calls), str(whole.calls - sum(calls)), _digits(whole.bytes / 1e6)]


def _digits(megabytes: float) -> str:
    """Two digits, and all of those before the point."""
    decimals = max(1 - math.floor(math.log10(megabytes or 1)), 0)
    return f"{megabytes:,.{decimals}f}"


main = cli.command(Config, scale)

if __name__ == "__main__":
    main()
