"""Several optimizers on the same weights and the same batches: logged, shown, and resumable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxprune as jp
from recipes.common import checkpoint, interrupt, run, training
from recipes.common.data import Dataset
from recipes.common.progress import progress
from recipes.common.training import TrainState

States = dict[str, TrainState]  # by arm; every array has a leading seed axis
History = list[dict[str, Any]]  # the lines of metrics.jsonl
Evaluate = Callable[[TrainState], np.ndarray]

seed_sparsity = jax.jit(jax.vmap(jp.sparsity))


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
    txs: Mapping[str, optax.GradientTransformation],
    module: nn.Module,
    dataset: Dataset,
    plan: Plan,
    folder: Folder,
) -> tuple[States, History]:
    """Trains every arm (name -> optimizer) in turns, chunk by chunk; (final states, metrics).

    With `folder.resume` it goes on from the checkpoint there. Raises `interrupt.Stopped`, after
    saving one, when Ctrl-C or SIGTERM was heard.
    """
    keys = training.seed_keys(plan.seed, plan.seeds)
    states = {arm: training.init(module, tx, keys, dataset.train.images) for arm, tx in txs.items()}
    first, states, history = _resumed(folder, states) if folder.resume else (0, states, [])
    loss_fn, train_data = training.classification(module), jax.device_put(dataset.train)
    arms = {
        arm: training.train(
            training.make_chunk(loss_fn, tx),
            states.pop(arm),
            train_data,
            keys,
            batch_size=plan.batch_size,
            steps=plan.steps,
            chunk_steps=plan.chunk_steps,
            start=first,
        )
        for arm, tx in txs.items()
    }
    evaluate = training.make_evaluate(module, dataset.test)
    return _follow(arms, evaluate, plan, folder, first, history)


def _follow(
    arms: Mapping[str, Iterator[training.Progress]],
    evaluate: Evaluate,
    plan: Plan,
    folder: Folder,
    first: int,
    history: History,
) -> tuple[States, History]:
    spent = {arm: history[-1][arm]["seconds"] if history else 0.0 for arm in arms}
    states: States = {}
    with (
        interrupt.deferred_signals() as signalled,
        progress(folder.out.name, plan.steps, first) as show,
    ):
        for points in zip(*arms.values(), strict=True):
            before, first = first, points[0].step
            evaluations = [step * plan.evaluations // plan.steps for step in (before, first)]
            record: dict[str, Any] = {"step": first}
            for arm, point in zip(arms, points, strict=True):
                record[arm] = _measured(point, spent[arm])
                if evaluations[0] < evaluations[1]:
                    record[arm]["test_accuracy"] = evaluate(point.state).tolist()
            history.append(record)
            run.append(folder.out / run.METRICS, record)
            show(first, _in_words(record))
            states = dict(zip(arms, (point.state for point in points), strict=True))
            if (signum := signalled()) and first < plan.steps:
                _stop(signum, folder, first, plan.steps, states)
    return states, history


def _measured(point: training.Progress, spent: float) -> dict[str, Any]:
    """One arm's part of a line of metrics.jsonl; lists are over seeds."""
    record = {
        "seconds": round(spent + point.seconds, 4),
        "loss": point.loss.tolist(),
        "accuracy": point.accuracy.tolist(),
    }
    if hasattr(point.state.opt_state, "mask_state"):
        record["sparsity"] = seed_sparsity(jp.get_masks(point.state.opt_state)).tolist()
    return record


def _in_words(record: Mapping[str, Any]) -> str:
    """Loss, training accuracy and sparsity of each arm, means over seeds."""
    words = []
    for arm, metrics in record.items():
        if arm != "step":
            at = f" {100 * np.mean(metrics['sparsity']):.1f}%" if "sparsity" in metrics else ""
            loss, accuracy = np.mean(metrics["loss"]), 100 * np.mean(metrics["accuracy"])
            words.append(f"{arm}{at}: loss {loss:.3f} acc {accuracy:.1f}%")
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
