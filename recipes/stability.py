"""When does training become stable to the noise of SGD: `python -m recipes.stability --help`.

Trains a few networks (trunks). At each fork several children of each go on to the end, dense and
pruned, from the identical state at the same position of the schedule; they differ only in the order
of their data. Plots by how much the test error rises in a straight line between two children.

Reference: Frankle et al., 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxprune as jp
from recipes.common import (
    checkpoint,
    cli,
    data,
    forking,
    heatmaps,
    measures,
    models,
    results,
    run,
    settings,
    training,
)
from recipes.common.errors import RecipeError
from recipes.common.forking import ARMS, Forking
from recipes.common.heatmaps import Forks
from recipes.common.journal import At, Journal, journal
from recipes.common.measures import PathSettings
from recipes.common.training import TrainState
from recipes.common.writeup import Writeup, finish

PROGRAM = "python -m recipes.stability"
PICTURE = "plots/stability.png"
MASKS = ("magnitude", "random")
FORKS = (0.0, 0.02, 0.1, 0.4)  # unless given: these fractions of the steps
QUANTITIES = ("error", "loss")


@dataclass(frozen=True)
class Config(PathSettings):
    """Instability against the step of the fork, for dense and for pruned networks."""

    out: Path = Path("runs/stability")
    """The folder to write to."""
    seeds: int = 3
    """How many networks to fork, each with its own initial weights."""
    children: int = 3
    """Children of each at each fork, at least 2."""
    forks: Annotated[
        tuple[int, ...], cli.default_is("INT ...", "0, 2, 10 and 40 % of the steps")
    ] = ()
    """Steps at which to fork."""
    sparsity: float = 0.8
    """The fraction of weights pruned in the sparse children, in [0, 1)."""
    mask: Annotated[str, cli.choice(MASKS)] = "magnitude"
    """The mask of sparse children: the largest weights of the finished trunk, or random (ERK)."""
    evaluations: Annotated[int, tyro.conf.Suppress] = 1  # children are tested at the end


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, stability, PROGRAM, argv)


Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a fork


class Trunks(NamedTuple):
    """The networks to fork, stacks over seeds."""

    at: dict[str, TrainState]  # by the step of the fork
    end: Any  # their params when trained to the end
    masks: Any  # of the sparse children


def stability(config: Config) -> dict[str, Any]:
    """Trains, forks, writes the folder `config.out`; returns what summary.json holds."""
    check(config)
    run.check_out(config.out, config.overwrite, config.resume)
    dataset = data.load(config.dataset, config.data_dir, config.train_examples)
    module = models.model(config.model, dataset.classes, config.norm)
    plan = settings.plan_of(config, len(dataset.train.labels))
    steps = plan.steps
    forks = forks_of(config, steps)

    began = time.perf_counter()
    f = forking.forking(
        module,
        settings.optimizer(config, steps),
        dataset.train,
        training.seed_keys(config.seed, config.seeds),
        config.batch_size,
        plan.chunk_steps,
    )
    with journal(config, PROGRAM) as kept:
        trunks = grow(config, f, forks, steps, kept)
        measure = measures.measure_of(config, module, dataset)
        records = fork_all(config, f, trunks, steps, measure, kept)
    rule = measures.rule(config, module, dataset.train.images)
    summary = summarise(config, trunks, records, steps, rule, time.perf_counter() - began)
    params, masks = training.seed_of((trunks.end, trunks.masks), 0)
    layers = results.layers(jp.apply_masks(params, masks), masks)
    save(config, trunks, records, summary, write_up(config, summary, layers))
    return summary


def check(config: Config) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    measures.check(config)
    cli.one_of("--mask", config.mask, MASKS)
    cli.in_range("--sparsity", config.sparsity, 0, 1, "[)")
    cli.at_least("--children", config.children, 2)
    forks_of(config, None)


def forks_of(config: Config, steps: int | None) -> list[int]:
    """The steps at which to fork; raises `RecipeError`."""
    forks = list(config.forks) or sorted({round(part * (steps or 0)) for part in FORKS})
    if forks != sorted(set(forks)) or forks[0] < 0:
        seen = " ".join(map(str, forks))
        raise RecipeError(f"--forks must rise, from 0 or more; got {seen}")
    if steps is not None and forks[-1] > steps:
        raise RecipeError(f"--forks must be at most the {steps} steps; got {forks[-1]}")
    return forks


def grow(config: Config, f: Forking, forks: list[int], steps: int, journal: Journal) -> Trunks:
    """The trunks as they were at each fork, and at the end."""
    first = forking.trunks(f)
    at = {str(fork): jax.tree.map(jnp.copy, first) for fork in forks}
    like = Trunks(at, first.params, forking.random_masks(f, first.params, config.sparsity))
    if grown := journal.last(like):
        return grown

    def train(course: Any, start: int, at: At) -> Any:
        state, stored = course
        for fork in sorted({*forks, steps}):
            if fork < start:
                continue
            between = lambda step, state, stored=stored: at(step, (state, stored))
            state, start = forking.advance(f, state, f.keys, start, fork, between), fork
            if fork in forks:
                stored = {**stored, str(fork): jax.tree.map(jnp.copy, state)}
        return state, stored

    words = f"{config.seeds} networks"
    state, at = journal.once("trunks", steps, (first, at), train, words)
    end = state.params
    if config.mask == "magnitude":
        masks = forking.magnitude_masks(end, config.sparsity)
    else:
        masks = forking.random_masks(f, end, config.sparsity)
    grown = Trunks(at, end, masks)
    journal.settle(grown)
    return grown


def fork_all(
    config: Config,
    f: Forking,
    trunks: Trunks,
    steps: int,
    measure: measures.Measure,
    journal: Journal,
) -> Records:
    """Trains and compares the children of every fork that the journal does not hold yet."""
    known = {record["step"] for record in journal.records}
    for fork in sorted(set(map(int, trunks.at)) - known):
        began = time.perf_counter()
        first, keys = forking.fork(f, trunks.at[str(fork)], trunks.masks, config.children)

        def train(state: TrainState, start: int, at: At, fork: int = fork, keys: Any = keys) -> Any:
            between = lambda step, state: at(step - fork, state)
            return forking.advance(f, state, keys, fork + start, steps, between)

        words = f"{len(ARMS) * config.seeds * config.children} networks"
        children = journal.once(f"fork at {fork:,}", steps - fork, first, train, words)
        values = forking.between_siblings(
            children, config.seeds, config.children, measure, config.points
        )
        record: dict[str, Any] = {"step": fork, "seconds": round(time.perf_counter() - began, 2)}
        record |= {arm: forking.heights(values, i, config.children) for i, arm in enumerate(ARMS)}
        journal.log(record)
        journal.settle(trunks)
    return journal.records


def summarise(
    config: Config, trunks: Trunks, records: Records, steps: int, rule: str | None, seconds: float
) -> dict[str, Any]:
    """The content of summary.json."""
    kept, weights = results.kept_weights(trunks.masks)

    def of(arm: str) -> list[dict[str, Any]]:
        return [
            {
                "step": record["step"],
                "test_accuracy": results.over_seeds(
                    [1 - np.mean(errors) for errors in record[arm]["test_error"]]
                ),
                **{
                    f"{name}_{height}": measures.over_siblings(
                        record[arm][f"{name}_{height}"], config.children
                    )
                    for name in QUANTITIES
                    for height in ("instability", "barrier")
                },
            }
            for record in records
        ]

    return {
        "recipe": "stability",
        "studies": "instability to SGD noise against the step of the fork, dense and pruned",
        "dataset": config.dataset,
        "model": config.model,
        "seeds": config.seeds,
        "children": config.children,
        "points": config.points,
        "steps": steps,
        "mask": config.mask,
        "sparsity": float(np.mean((weights - kept) / weights)),
        "threshold_points": config.threshold,
        "running_statistics": rule,
        "seconds": round(seconds, 2),
        **{arm: of(arm) for arm in ARMS},
        "peak_memory_bytes": results.peak_memory_bytes(),
        "environment": results.environment(),
    }


def save(
    config: Config, trunks: Trunks, records: Records, summary: dict[str, Any], writeup: Writeup
) -> None:
    """Writes the pruned trunks, the plot, summary.json and report.md; prints the table."""
    pruned = jp.apply_masks(trunks.end, trunks.masks)
    checkpoint.save_model(config.out / run.MODEL, pruned, {}, trunks.masks)
    steps = [record["step"] for record in records]
    arms = {
        arm: Forks(
            [np.ravel(record[arm]["error_instability"]) for record in records],
            [1 - np.ravel(record[arm]["test_error"]) for record in records],
        )
        for arm in ARMS
    }
    figure = heatmaps.over_forks(steps, arms, config.threshold)
    finish(config.out, writeup, summary, {PICTURE: figure})


def write_up(config: Config, summary: dict[str, Any], layers: str) -> Writeup:
    """The result, for people: a row for each fork."""
    rows = [
        (
            f"{fork['step']:,}, {arm}",
            results.plus_minus(fork["error_instability"], 2, 100),
            results.plus_minus(fork["error_barrier"], 2, 100),
            results.plus_minus(fork["loss_instability"], 3),
            results.percent(fork["test_accuracy"]),
        )
        for pair in zip(summary["dense"], summary["sparse"], strict=True)
        for arm, fork in zip(ARMS, pair, strict=True)
    ]
    rule, peak = summary["running_statistics"], summary["peak_memory_bytes"] / 1e9
    what = "seeds" if config.seeds > 1 else "children, by the jackknife"
    return Writeup(
        title="Stability to the noise of SGD",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds x {config.children} "
            f"children a fork, {summary['steps']:,} steps, sparsity "
            f"{100 * summary['sparsity']:.4g} % ({config.mask}), {config.points} points a path on "
            f"test data{measures.in_words(rule)}, by the step of the fork: instability I and "
            f"barrier B, of the error in points, with standard error over {what}; accuracy with "
            "standard deviation over seeds"
        ),
        columns=("error I", "error B", "loss I", "test accuracy"),
        rows=rows,
        footline=f"{summary['seconds']:.0f} s in all, peak memory {peak:.2f} GB",
        command=run.again(PROGRAM, config.out),
        pictures={
            PICTURE: "Each dot is a pair of children of one network, or a child; lines join the "
            "means. Below the dashed line training is stable. The "
            "forks are evenly spaced, not to scale."
        },
        layers={"sparse": layers},
        models=[run.MODEL],
        environment=summary["environment"],
    )


if __name__ == "__main__":
    main()
