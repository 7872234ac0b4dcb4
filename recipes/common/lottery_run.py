"""The phases of a study of tickets in turns: logged, saved after each, and gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from recipes.common import checkpoint, lottery, results, run
from recipes.common.errors import RecipeError
from recipes.common.interrupt import stop_if
from recipes.common.lottery import METHODS, Accuracy, End, Network, Stored, Study
from recipes.common.phases import At
from recipes.common.progress import progress
from recipes.common.side_by_side import Folder

NOTHING_SAVED = "stopped in the first training; nothing was saved"

Signalled = Callable[[], int | None]
Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a phase, the first of dense ones


def go_through(
    study: Study, phases: int, test: Accuracy, folder: Folder, signalled: Signalled
) -> tuple[Records, dict[str, End]]:
    """Trains dense networks and then all phases, or those that a stopped study did not come to.

    A phase is logged, and then saved: what is logged beyond the checkpoint is done again.
    """
    saved, methods = folder.out / run.CHECKPOINT, [m for m in study.arms if m in METHODS]
    log, seeds = Log(folder.out / run.METRICS, test), len(study.keys)
    if folder.resume:
        phase, stored, networks = _resumed(study, saved, methods)
        log.resume(phase)
    else:
        phase = 0
        with progress("dense", study.steps) as show:
            at = _between(show, seeds, signalled, NOTHING_SAVED)
            stored, dense = lottery.first_training(study, at)
        networks = dict.fromkeys(methods, stored.trained)
        log(0, {"dense": dense}, study.steps)
        checkpoint.save_checkpoint(saved, 0, _state(stored, networks))
    ends: dict[str, End] = {}
    for index in range(phase, phases):
        after = f"stopped after {index} of {phases} phases; go on with: {folder.resume_command}"
        stop_if(signalled(), after)
        starts = lottery.begin(study, networks, stored, index)
        with progress(f"phase {index + 1} of {phases}", study.length) as show:
            at = _between(show, len(starts) * seeds, signalled, after)
            ends = lottery.train_phase(study, starts, at)
        networks = {method: ends[method].network for method in methods}
        log(index + 1, ends, study.length)
        if index + 1 < phases:  # after the last there is nothing to go on with
            checkpoint.save_checkpoint(saved, index + 1, _state(stored, networks))
    return log.records, ends


class Log:
    """The lines of metrics.jsonl, one a phase; the first is that of the dense networks."""

    def __init__(self, path: Path, test: Accuracy):
        self.path, self.test = path, test
        self.records: Records = []
        self.spent, self.began = 0.0, time.perf_counter()

    def resume(self, phase: int) -> None:
        """Goes on after this phase."""
        self.records = [r for r in run.read_lines(self.path) if r["phase"] <= phase]
        if [record["phase"] for record in self.records] != list(range(phase + 1)):
            raise RecipeError(
                f"--resume: '{self.path}' lacks phases that the checkpoint is past; start anew "
                "with --overwrite"
            )
        run.write(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
        self.spent = self.records[-1]["seconds"]

    def __call__(self, phase: int, ends: Mapping[str, End], steps: int) -> None:
        """Adds a line; lists are over replicates."""
        before = self.records[-1]["step"] if self.records else 0
        record = {
            "phase": phase,
            "step": before + steps,
            "seconds": round(self.spent + time.perf_counter() - self.began, 2),
            **{arm: self.measure(end) for arm, end in ends.items()},
        }
        self.records.append(record)
        run.append(self.path, record)

    def measure(self, end: End) -> dict[str, list[Any]]:
        """What there is to say of an arm."""
        accuracies = (self.test(n.params, n.batch_stats).tolist() for n in (end.early, end.network))
        return {
            "kept_weights": results.kept_weights(end.network.masks)[0].tolist(),
            "validation_accuracy": end.validation.tolist(),
            "early_step": end.step.tolist(),
            **dict(zip(("test_accuracy", "end_test_accuracy"), accuracies, strict=True)),
        }


def _resumed(
    study: Study, folder: Path, methods: Sequence[str]
) -> tuple[int, Stored, dict[str, Network]]:
    """The phase that a stopped study came to, and what it had saved."""

    def shapes() -> dict[str, Any]:
        network = lottery.first(study)
        at = dict.fromkeys((0, study.rewind), network)
        return _state(Stored(at, network), dict.fromkeys(methods, network))

    phase, saved = checkpoint.load_checkpoint(folder, jax.eval_shape(shapes))
    at = {int(step): network for step, network in saved["at"].items()}
    return phase, Stored(at, saved["trained"]), saved["networks"]


def _state(stored: Stored, networks: Mapping[str, Network]) -> dict[str, Any]:
    """What a checkpoint holds."""
    at = {str(step): network for step, network in stored.at.items()}
    return {"at": at, "trained": stored.trained, "networks": dict(networks)}


def _between(show: Any, networks: int, signalled: Signalled, stopped: str) -> At:
    """What to do between calls of the device."""

    def at(step: int) -> None:
        show(step, f"{networks} networks")
        stop_if(signalled(), stopped)

    return at
