"""Continuous relaxation of the widths of a network: `python -m recipes.relaxation --help`.

Every neuron has a gate, folded into the norm (or kernel) of the layers that make it. Gates and
weights learn together, against accuracy, relative FLOPs, and a term that drives gates away from
1/2. In stages with a rising threshold neurons of low gates are cut; at the end the gates are
folded, and the small network trains on. Beside it, from the same weights and on the same batches,
dense networks train as long. The table shows weights, FLOPs, measured latency and accuracy before
and after. Writes a folder that reproduces itself.

Reference: Larson, Upadhyaya, McDermott and Ganju, 2023, A Generalization of Continuous Relaxation
in Structured Pruning.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, cycle
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

import jaxprune as jp
from jaxprune.structured.compact import Compact
from jaxprune.structured.cost import counter
from recipes.common import (
    before_after,
    cli,
    compacted,
    cutting,
    data,
    dead,
    flops_left,
    latency,
    layer_widths,
    models,
    plots,
    relaxation_plots,
    relaxing_stages,
    results,
    run,
    settings,
    training,
)
from recipes.common.errors import RecipeError
from recipes.common.journal import journal
from recipes.common.relaxing import Stage, Study
from recipes.common.relaxing_stages import Networks, Records
from recipes.common.writeup import Writeup, finish

PROGRAM = "python -m recipes.relaxation"
STAGES, GATES, WIDTHS, FLOPS = (
    f"plots/{name}.png" for name in ("stages", "gates", "widths", "flops")
)
DENSE = "dense"
FINAL = 1.6  # how long the last stage is, in those before


@dataclass(frozen=True)
class Config(settings.Settings):
    """Continuous relaxation of widths, several seeds and budgets in one program."""

    out: Path = Path("runs/relaxation")
    """The folder to write to."""
    width: float = 1.0
    """What multiplies the sizes of the hidden layers."""
    norm: Annotated[str, cli.choice(models.NORMS)] = "batch"
    """Normalization of the convolutional networks; group ties channels of its groups together."""
    seeds: int = 3
    """How many networks to train of each kind, each with its own initial weights."""
    flops: Annotated[
        tuple[float, ...],
        cli.listed(
            "FLOAT",
            "The shares of the dense FLOPs to come to, in [0, 1): what the relative cost is pulled "
            "to, and below which nothing is cut. With 0 the thresholds alone decide, as published.",
        ),
    ] = (0.5, 0.25)
    thresholds: Annotated[tuple[float, ...], cli.listed("FLOAT")] = (0.02, 0.05, 0.1, 0.2)
    """The gates below which neurons are cut, one a stage, after two stages that cut none."""
    final_threshold: float = 0.25
    """That of the last stage, which trains without gates and is at least 1.6 times as long."""
    pull: float = 0.5
    """What the distance of the relative FLOPs from their target is multiplied by."""
    ejection: float = 1.0
    """What the term against undecided gates is multiplied by, in the second half of a stage."""
    rho: float = 1.0
    """How far from undecided it reaches: in logits, sqrt(2) rho^2."""
    gate_rate: float = 0.02
    """The learning rate of gates."""
    weight_decay: float = 1e-4
    """What is added to the gradient, times the weights; never to that of gates."""
    collapse: bool = False
    """Residual branches may lose all their neurons, and are removed; else each layer keeps one."""
    timings: int = 9
    """How often each forward pass is timed; 0 for never."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, relax, PROGRAM, argv)


def relax(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    check(config)
    run.check_out(config.out, config.overwrite, config.resume)
    dataset = data.load(config.dataset, config.data_dir, config.train_examples)
    study = study_of(config, dataset)
    with journal(config, PROGRAM) as kept:
        networks, records = relaxing_stages.all_stages(study, dataset, kept, config.evaluations)
    summary = summarise(config, study, networks, records, dataset)
    finish(
        config.out,
        write_up(config, study, summary),
        summary,
        pictures(config, study, summary, records),
    )
    return summary


def check(config: Config) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    settings.check(config)
    cli.some_of("--flops", config.flops)
    for share in config.flops:
        cli.in_range("--flops", share, 0, 1, "[)")
    cli.in_range("--final-threshold", config.final_threshold, 0, 1, "()")
    for threshold in config.thresholds:
        cli.in_range("--thresholds", threshold, 0, 1, "()")
    rising = [*config.thresholds, config.final_threshold]
    if not config.thresholds or rising != sorted(rising):
        seen = " ".join(f"{threshold:g}" for threshold in rising)
        raise RecipeError(f"--thresholds must rise up to --final-threshold; got {seen}")
    cli.in_range("--width", config.width, 0, 100, "(]")
    cli.in_range("--rho", config.rho, 0, math.inf, "()")
    cli.in_range("--gate-rate", config.gate_rate, 0, math.inf, "()")
    for flag in ("pull", "ejection", "weight_decay"):
        cli.in_range(f"--{flag.replace('_', '-')}", getattr(config, flag), 0, math.inf, "[)")
    cli.at_least("--timings", config.timings, 0)
    if config.collapse and config.model != "resnet20":
        raise RecipeError("--collapse needs a model with residual branches: --model resnet20")


def study_of(config: Config, dataset: data.Dataset) -> Study:
    """The programs of all stages; raises `RecipeError` for budgets that can't be met."""
    network: dict[str, Any] = {
        "name": config.model,
        "classes": dataset.classes,
        "norm": config.norm,
        "width": config.width,
    }
    module = models.model(**network)
    plan = settings.plan_of(config, len(dataset.train.labels))
    structure = compacted.structure_of(module, dataset.train.images.shape[1:])
    held = cutting.held(structure) if config.collapse else list(structure.groups)
    count = counter(structure)
    dense = count({}).flops
    least = {n: np.arange(structure.groups[n].size) < (n in held) for n in structure.groups}
    for share in config.flops:
        if 0 < share < count(least).flops / dense:
            raise RecipeError(
                f"--flops {share:g} can't be met: with one neuron in each layer "
                f"{count(least).flops / dense:.4g} of the FLOPs are left"
            )
    stages, chunk_steps = stages_of(config, plan.steps, plan.chunk_steps)
    return Study(
        network=network,
        module=module,
        structure=structure,
        flops=dense,
        held=tuple(held),
        optimizer=settings.OPTIMIZERS[config.optimizer],
        schedule=lambda steps: settings.rates(config, steps),
        weight_decay=config.weight_decay,
        gate_rate=config.gate_rate,
        rho=config.rho,
        train=jax.device_put(dataset.train),
        batch_size=config.batch_size,
        chunk_steps=chunk_steps,
        keys=training.seed_keys(config.seed, config.seeds),
        arms={DENSE: None} | {arm_name(share): share for share in config.flops},
        stages=stages,
    )


def stages_of(config: Config, steps: int, chunk_steps: int) -> tuple[list[Stage], int]:
    """The stages, of so many steps in all, and steps per call of the device, near those asked.

    All stages but the last are a multiple of these: each other length would be a compilation.
    """
    search = [None, *config.thresholds]
    parts = 1 + len(search) + FINAL
    if steps < 2 * parts:
        raise RecipeError(
            f"--steps must be at least {math.ceil(2 * parts)}, 2 a stage; got {steps}"
        )
    calls = max(round(steps / parts / chunk_steps), 1)
    chunk_steps = int(steps / parts) // calls
    length = calls * chunk_steps
    stages = [Stage("init", length, None, 1e-4, 1e-4)]
    for i, threshold in enumerate(search):
        stages.append(Stage(f"search {i}", length, threshold, config.pull, config.ejection))
    rest = steps - length * len(stages)
    final = Stage("final", rest, config.final_threshold, 0, 0, gating=False)
    return [*stages, final], chunk_steps


def arm_name(share: float) -> str:
    """That of the networks that come to a share of the FLOPs."""
    return f"relaxed {100 * share:g} %" if share else "relaxed"


def summarise(
    config: Config, s: Study, networks: Networks, records: Records, dataset: data.Dataset
) -> dict[str, Any]:
    """The content of summary.json; compacts and saves the networks, measures latencies."""
    began, n = time.perf_counter(), len(s.keys)
    image = dataset.train.images.shape[1:]
    sizes, accuracy, removed, small = {}, {}, {}, {}
    for i, arm in enumerate(s.arms):
        left = networks.left[i * n : (i + 1) * n]
        sizes[arm] = [before_after.size_of(s.structure, own) for own in left]
        accuracy[arm] = np.asarray(records[-1][arm]["test_accuracy"])
        if arm == DENSE:
            dense = training.seed_of(networks.variables, 0)
            small[arm] = Compact(dense, s.module.apply)
            continue
        own = [training.seed_of(networks.variables, i * n + k) for k in range(n)]
        compact = [jp.compact(s.structure, *pair) for pair in zip(own, left, strict=True)]
        seeds = [(gone, one.params) for gone, one in zip(left, compact, strict=True)]
        compacted.save(config.out / model_path(arm), s.network, image, seeds)
        small[arm] = compact[0]
        removed[arm] = compacted.compare(
            Compact(own[0], s.module.apply), compact[0], dataset.test
        ) | {"leaves": [list(gone.removed) for gone in left]}
    times = (
        latency.latencies(small, image, rounds=config.timings, seed=config.seed)
        if config.timings
        else {}
    )
    chance = dead.chance(dataset.test.labels)
    return {
        "recipe": "relaxation",
        "studies": "test accuracy and speed after continuous relaxation, beside dense training",
        "dataset": config.dataset,
        "model": config.model,
        "seeds": config.seeds,
        "steps": records[-1]["step"],
        "stages": [stage._asdict() for stage in s.stages],
        "flops": list(config.flops),
        "chance": chance,
        "networks": before_after.numbers(sizes, accuracy, times, chance),
        "masked_and_compacted": removed,
        "latency": times,
        "seconds": round(records[-1]["seconds"] + time.perf_counter() - began, 2),
        "peak_memory_bytes": results.peak_memory_bytes(),
        "environment": results.environment(),
    }


def model_path(arm: str) -> str:
    """Where the compacted networks of an arm are, below the folder of the run."""
    return f"{run.MODEL}/{arm.replace(' %', '').replace(' ', '-')}"


def pictures(
    config: Config, s: Study, summary: dict[str, Any], records: Records
) -> dict[str, bytes]:
    """The figures, by their path below the folder of the run."""
    relaxed = [arm for arm in s.arms if arm != DENSE]
    ends = list(accumulate(stage.steps for stage in s.stages))
    cutting_stages = {stage.name for stage in s.stages if stage.threshold is not None}
    cut = [record for record in records if record["stage"] in cutting_stages]
    dense = np.asarray(records[-1][DENSE]["test_accuracy"])
    whole = before_after.size_of(s.structure, {})
    widths = {
        arm: {
            group: np.array([own[group] for own in summary["networks"][arm]["widths"]])
            for group in whole.widths
        }
        for arm in relaxed
    }
    gated = [record for record in records if record["stage"] != "final"]
    looks = zip(s.arms, cycle(plots.COLORS), cycle("os^D"), strict=False)
    drawn = {arm: plots.Look(color, "-", marker) for arm, color, marker in looks}
    return {
        STAGES: relaxation_plots.stages(records, drawn, ends),
        GATES: relaxation_plots.histograms(gated, relaxed, ends[:-1]),
        WIDTHS: layer_widths.picture(whole.widths, {"Widths": widths}, drawn),
        FLOPS: flops_left.picture(
            {arm: _against_flops(cut, arm, "cut_accuracy") for arm in relaxed},
            {arm: _against_flops([r for r in cut if r["step"] in ends], arm) for arm in relaxed},
            dense,
            [1, *(share for share in config.flops if share)],
            drawn,
        ),
    }


def _against_flops(records: Records, arm: str, key: str = "test_accuracy") -> plots.Curve:
    """Shares of the FLOPs, and accuracies (points, seeds)."""
    found = [record[arm] for record in records if key in record[arm]]
    return [float(np.mean(own["flops"])) for own in found], np.asarray([own[key] for own in found])


def write_up(config: Config, s: Study, summary: dict[str, Any]) -> Writeup:
    """The result, for people."""
    columns, rows = before_after.table(summary["networks"], summary["latency"])
    largest = max(own["largest_difference"] for own in summary["masked_and_compacted"].values())
    differ = sum(own["answers_that_differ"] for own in summary["masked_and_compacted"].values())
    peak = summary["peak_memory_bytes"] / 1e9
    thresholds = ", ".join(f"{t:g}" for t in [*config.thresholds, config.final_threshold])
    captions = {
        STAGES: "Left: test accuracy under the gates. Right: the relaxed FLOPs (lines) and those "
        "of the neurons that are not cut yet (dotted). Grey: where a stage ends, and neurons are "
        "cut. Means over seeds; bands from the lowest seed to the highest.",
        GATES: "The fraction of the gates that are left with each value, over the steps; all "
        "seeds.",
        WIDTHS: "Neurons of each group before (grey) and after: means over seeds, and the range "
        "from the smallest to the largest.",
        FLOPS: "Test accuracy right after each cut, and at the end of its stage, against the FLOPs "
        "of the neurons that are left. Dashed: dense networks that trained as long.",
    }
    return Writeup(
        title="Continuous relaxation",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} steps "
            f"in {len(s.stages)} stages with thresholds {thresholds}. Mean ± standard deviation "
            "over seeds, and " + before_after.READING
        ),
        columns=columns,
        rows=rows,
        footline=(
            f"Gated and compacted networks: logits differ by at most {largest:.1e}, {differ} "
            f"answers on test data do. {summary['seconds']:.0f} s in all, peak memory {peak:.2f} GB"
        ),
        command=run.again(PROGRAM, config.out),
        pictures=captions,
        layers={"all networks": repr(s.structure)},
        models=[model_path(arm) for arm in s.arms if arm != DENSE],
        of_layers="The neurons that have gates, and what goes with them",
        saved="The compacted networks of all seeds are in {models}: read one with "
        "`recipes.common.compacted.load`.",
        environment=summary["environment"],
    )


if __name__ == "__main__":
    main()
