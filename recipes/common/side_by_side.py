"""Several arms on the same weights and the same batches: logged, shown, and resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from recipes.common import churn, training
from recipes.common.data import Dataset
from recipes.common.journal import Journal
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
    devices: int = 1  # to spread the seeds over


def train_arms(
    arms: Mapping[str, Arm], dataset: Dataset, plan: Plan, journal: Journal
) -> tuple[States, History]:
    """Trains every arm in turns, chunk by chunk; (final states, metrics).

    Goes on from the last checkpoint of `journal`, if it has one.
    """
    keys = training.seed_keys(plan.seed, plan.seeds)
    states = {name: training.init(arm, keys, dataset.train.images) for name, arm in arms.items()}
    # before the checkpoint takes their place: a run that goes on knows its first masks
    watches = {name: _Watch(arm, states[name]) for name, arm in arms.items()}
    states = journal.last(states) or states
    if plan.devices > 1:
        states = training.spread(states, plan.devices)
    # arms of one network share a compiled test; those that differ only in their start, all
    tests = {arm.module: training.make_evaluate(arm.module, dataset.test) for arm in arms.values()}
    for name, watch in watches.items():
        spent = journal.records[-1][name]["seconds"] if journal.records else 0.0
        watch.begin(states[name], spent, tests[watch.arm.module])
    program = lambda arm: arm._replace(start=None)
    chunks = {
        own: training.make_chunk(own, plan.devices) for own in set(map(program, arms.values()))
    }
    train_data = jax.device_put(dataset.train)
    runs = {
        name: training.train(
            chunks[program(arm)],
            states[name],
            train_data,
            keys,
            batch_size=plan.batch_size,
            steps=plan.steps,
            chunk_steps=plan.chunk_steps,
            start=journal.step,
        )
        for name, arm in arms.items()
    }
    states = _follow(runs, states, watches, plan, journal)
    return training.spread(states, 1) if plan.devices > 1 else states, journal.records


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
    states: States,
    watches: Mapping[str, _Watch],
    plan: Plan,
    journal: Journal,
) -> States:
    with progress("training", plan.steps, journal.step) as show:
        for points in zip(*runs.values(), strict=True):
            now = points[0].step
            evaluations = [s * plan.evaluations // plan.steps for s in (journal.step, now)]
            tested = evaluations[0] < evaluations[1]
            record: dict[str, Any] = {"step": now}
            for name, point in zip(runs, points, strict=True):
                record[name] = watches[name].look(point, tested)
            journal.log(record)
            show(now, _in_words(record))
            states = dict(zip(runs, (point.state for point in points), strict=True))
            journal.settle(states, now, _score(record) if tested else ())
    return states


def _score(record: Mapping[str, Any]) -> list[float]:
    """What is best: the sparsest states, and of them the highest accuracy; means over arms."""
    arms = [own for arm, own in record.items() if arm != "step"]
    arms = [own for own in arms if "sparsity" in own] or arms
    sparsity = np.mean([own.get("sparsity", 0.0) for own in arms])
    return [round(float(sparsity), 4), float(np.mean([own["test_accuracy"] for own in arms]))]


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
                else f"{arm}{at}: loss {loss:.3f}, train acc {accuracy:.1f}%"
            )
    return ("train acc: " if len(record) > 4 else "") + "  ".join(words)
