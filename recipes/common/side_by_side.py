"""Several arms on the same weights and the same batches: logged, shown, and resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from recipes.common import checkpoint, churn, interrupt, run, training
from recipes.common.data import Dataset
from recipes.common.progress import progress
from recipes.common.training import Arm, TrainState, Weights

States = dict[str, TrainState]  # by arm; every array has a leading seed axis
History = list[dict[str, Any]]  # the lines of metrics.jsonl
Test = Callable[[Any, Any], np.ndarray]  # (params, batch_stats) -> accuracy (seeds,)


class Plan(NamedTuple):
    """How to train: the same for all arms."""

    seed: int  # the first of
    seeds: int
    steps: int
    batch_size: int
    chunk_steps: int  # steps per call of the device, and per line of metrics.jsonl
    evaluations: int  # how often test accuracy is measured, evenly spread


class Folder(NamedTuple):
    """Where to log, and how the user goes on with a run that was stopped."""

    out: Path
    resume: bool
    resume_command: str


def train_arms(
    arms: Mapping[str, Arm], dataset: Dataset, plan: Plan, folder: Folder
) -> tuple[States, History]:
    """Trains every arm in turns, chunk by chunk; (final states, metrics).

    With `folder.resume` it goes on from the checkpoint there. Raises `interrupt.Stopped`, after
    saving one, when Ctrl-C or SIGTERM was heard.
    """
    keys = training.seed_keys(plan.seed, plan.seeds)
    states = {name: training.init(arm, keys, dataset.train.images) for name, arm in arms.items()}
    # before the checkpoint takes their place: a run that goes on knows its first masks
    watches = {name: _Watch(arm, states[name]) for name, arm in arms.items()}
    start, states, history = _resumed(folder, states) if folder.resume else (0, states, [])
    # arms of one network share a compiled test; those that differ only in their start, all
    tests = {arm.module: training.make_evaluate(arm.module, dataset.test) for arm in arms.values()}
    for name, watch in watches.items():
        spent = history[-1][name]["seconds"] if history else 0.0
        watch.begin(states[name], spent, tests[watch.arm.module])
    program = lambda arm: arm._replace(start=None)
    chunks = {own: training.make_chunk(own) for own in set(map(program, arms.values()))}
    train_data = jax.device_put(dataset.train)
    runs = {
        name: training.train(
            chunks[program(arm)],
            states.pop(name),
            train_data,
            keys,
            batch_size=plan.batch_size,
            steps=plan.steps,
            chunk_steps=plan.chunk_steps,
            start=start,
        )
        for name, arm in arms.items()
    }
    return _follow(runs, watches, plan, folder, start, history)


class _Watch:
    """What there is to say of an arm as it trains."""

    def __init__(self, arm: Arm, first: TrainState):
        self.arm = arm
        self.masked = arm.weights is not Weights.DENSE
        self.first_masks = churn.masks(first.opt_state) if self.masked else None
        self.measure = jax.jit(jax.vmap(arm.learned.measure)) if arm.learned else None

    def begin(self, state: TrainState, spent: float, test: Test) -> None:
        """Training goes on from `state`, after `spent` seconds in earlier programs."""
        self.masks = churn.masks(state.opt_state) if self.masked else None
        self.spent, self.test = spent, test

    def look(self, point: training.Progress, tested: bool) -> dict[str, Any]:
        """The arm's part of a line of metrics.jsonl; lists are over seeds."""
        state = point.state
        record = {
            "seconds": round(self.spent + point.seconds, 4),
            "loss": point.loss.tolist(),
            "accuracy": point.accuracy.tolist(),
        }
        if self.masked:
            record |= churn.measure(state.opt_state, self.first_masks, self.masks)
            self.masks = churn.masks(state.opt_state)
        if self.measure:
            measured = self.measure(state.params, state.opt_state.step)
            record |= {name: values.tolist() for name, values in measured.items()}
        if tested:
            params = training.network(self.arm, state)
            record["test_accuracy"] = self.test(params, state.batch_stats).tolist()
        return record


def _follow(
    runs: Mapping[str, Iterator[training.Progress]],
    watches: Mapping[str, _Watch],
    plan: Plan,
    folder: Folder,
    first: int,
    history: History,
) -> tuple[States, History]:
    states: States = {}
    with (
        interrupt.deferred_signals() as signalled,
        progress(folder.out.name, plan.steps, first) as show,
    ):
        for points in zip(*runs.values(), strict=True):
            before, first = first, points[0].step
            evaluations = [step * plan.evaluations // plan.steps for step in (before, first)]
            tested = evaluations[0] < evaluations[1]
            record: dict[str, Any] = {"step": first}
            for name, point in zip(runs, points, strict=True):
                record[name] = watches[name].look(point, tested)
            history.append(record)
            run.append(folder.out / run.METRICS, record)
            show(first, _in_words(record))
            states = dict(zip(runs, (point.state for point in points), strict=True))
            if (signum := signalled()) and first < plan.steps:
                _stop(signum, folder, first, plan.steps, states)
    return states, history


def _in_words(record: Mapping[str, Any]) -> str:
    """Loss, training accuracy and sparsity of each arm, means over seeds; of many, accuracy."""
    words = []
    for arm, metrics in record.items():
        if arm != "step":
            at = f" {100 * np.mean(metrics['sparsity']):.1f}%" if "sparsity" in metrics else ""
            loss, accuracy = np.mean(metrics["loss"]), 100 * np.mean(metrics["accuracy"])
            many = len(record) > 4
            words.append(
                f"{arm} {accuracy:.1f}%"
                if many
                else f"{arm}{at}: loss {loss:.3f} acc {accuracy:.1f}%"
            )
    return "  ".join(words)


def _resumed(folder: Folder, like: States) -> tuple[int, States, History]:
    """The step to go on from, the states, and the metrics up to there."""
    step, states = checkpoint.load_checkpoint(folder.out / run.CHECKPOINT, like)
    metrics = folder.out / run.METRICS
    history = [record for record in run.read_lines(metrics) if record["step"] <= step]
    run.write(metrics, "".join(json.dumps(record) + "\n" for record in history))
    return step, states, history


def _stop(signum: int, folder: Folder, step: int, steps: int, states: States) -> NoReturn:
    path = checkpoint.save_checkpoint(folder.out / run.CHECKPOINT, step, states)
    raise interrupt.Stopped(
        signum,
        f"stopped at step {step} of {steps}; the checkpoint is in {path}; "
        f"go on with: {folder.resume_command}",
    )
