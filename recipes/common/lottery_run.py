"""The phases of a study of tickets in turns: logged, saved after each, and gone on with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from recipes.common import dead, lottery, results
from recipes.common.journal import Journal
from recipes.common.lottery import Accuracy, End, Network, Stored, Study

Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a phase, the first of dense ones


class Settled(NamedTuple):
    """What goes from phase to phase."""

    at: dict[str, Network]  # of the first training, by step
    trained: Network  # at its end
    ends: dict[str, End]  # by arm, what its last phase came to


def go_through(
    study: Study, phases: int, test: Accuracy, journal: Journal
) -> tuple[Records, dict[str, End]]:
    """Trains dense networks and then all phases, or those that the journal does not hold yet."""
    spent = journal.records[-1]["seconds"] if journal.records else 0.0
    log = Log(journal, test, time.perf_counter() - spent)
    settled = journal.last(_like(study, len(journal.records) > 1))
    for phase in range(len(journal.records), phases + 1):
        if settled is None:
            stored, dense = lottery.first_training(study, journal)
            ends, steps = {"dense": dense}, study.steps
        else:
            stored = Stored({int(k): network for k, network in settled.at.items()}, settled.trained)
            last = {arm: end.network for arm, end in settled.ends.items()}
            networks = last if phase > 1 else dict.fromkeys(study.arms, stored.trained)
            starts = lottery.begin(study, networks, stored, phase - 1)
            name = f"phase {phase} of {phases}"
            ends, steps = lottery.train_phase(study, starts, name, journal), study.length
        log(phase, ends, steps)
        at = {str(step): network for step, network in stored.at.items()}
        settled = Settled(at, stored.trained, ends)
        journal.settle(settled)
    assert settled is not None
    return journal.records, settled.ends


def _like(study: Study, in_phases: bool) -> Settled:
    """The shapes of what is settled."""
    network, seeds = jax.eval_shape(lambda: lottery.first(study)), len(study.keys)
    end = End(network, np.zeros(seeds, int), network, np.zeros(seeds))
    at = {str(step): network for step in {0, study.rewind}}
    return Settled(at, network, dict.fromkeys(study.arms if in_phases else ("dense",), end))


class Log:
    """The lines of metrics.jsonl, one a phase; the first is that of the dense networks."""

    def __init__(self, journal: Journal, test: Accuracy, began: float):
        self.journal, self.test, self.began = journal, test, began

    def __call__(self, phase: int, ends: Mapping[str, End], steps: int) -> None:
        """Adds a line; lists are over replicates."""
        records = self.journal.records
        self.journal.log(
            {
                "phase": phase,
                "step": (records[-1]["step"] if records else 0) + steps,
                "seconds": round(time.perf_counter() - self.began, 2),
                **{arm: self.measure(end) for arm, end in ends.items()},
            }
        )

    def measure(self, end: End) -> dict[str, Any]:
        """What there is to say of an arm."""
        accuracies = (self.test(n.params, n.batch_stats).tolist() for n in (end.early, end.network))
        return {
            "kept_weights": results.kept_weights(end.network.masks)[0].tolist(),
            "empty_layers": dead.empty_layers(end.network.masks),
            "validation_accuracy": end.validation.tolist(),
            "early_step": end.step.tolist(),
            **dict(zip(("test_accuracy", "end_test_accuracy"), accuracies, strict=True)),
        }
