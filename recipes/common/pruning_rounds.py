"""Rounds of structured pruning: score, prune to a share of the FLOPs, train on; logged.

At each target the neurons that were masked are really removed, and the compacted networks are held
against the masked ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from jaxprune.structured.compact import Compact
from recipes.common import before_after, compacted, masked_networks, run, training
from recipes.common.data import Dataset
from recipes.common.journal import Journal
from recipes.common.masked_networks import Networks, Study

DENSE = "dense"  # the arm that trains on and is not pruned

Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a round
Test = Callable[[Any, Any], np.ndarray]  # (params, batch_stats), of a stack -> accuracy


def shares(targets: Sequence[float], rounds: int) -> list[float]:
    """From 1 to each target in so many rounds, each of which leaves the same fraction."""
    found, before = [], 1.0
    for target in targets:
        found += [before * (target / before) ** (i / rounds) for i in range(1, rounds)]
        found.append(before := target)
    return found


def all_rounds(s: Study, dataset: Dataset, out: Path, journal: Journal) -> Records:
    """Every round that the journal does not hold yet."""
    test = training.make_evaluate(s.module, dataset.test)
    networks = _settled(s, journal)
    for done in range(len(journal.records), 1 + len(s.shares)):
        began = time.perf_counter()
        if networks is None:
            networks, record = first_round(s, test, journal)
        else:
            share = s.shares[done - 1]
            networks, record = one_round(s, networks, done - 1, test, journal)
            if share in s.targets:
                for arm, told in removed(s, networks, share, dataset, out).items():
                    record[arm] |= told
            spent = journal.records[-1]["seconds"] + time.perf_counter() - began
            record["seconds"] = round(spent, 2)
        journal.log(record)
        journal.settle(_state(networks))
    return journal.records


def first_round(s: Study, test: Test, journal: Journal) -> tuple[Networks, dict[str, Any]]:
    """Trains the networks that are pruned; a copy of them for each arm, and what is logged."""
    began = time.perf_counter()
    untrained = masked_networks.untrained(s)
    trained = masked_networks.train(s, untrained, s.rates, s.steps, 0, "dense", journal)
    record = {
        "round": 0,
        "step": s.steps,
        "seconds": round(time.perf_counter() - began, 2),
        DENSE: {"test_accuracy": test(*masked_networks.parts(trained.variables)).tolist()},
    }
    return masked_networks.copies(trained, 1 + len(s.scores)), record


def one_round(
    s: Study, networks: Networks, index: int, test: Test, journal: Journal
) -> tuple[Networks, dict[str, Any]]:
    """Prunes every arm but the dense one, and trains on; and what is logged of it."""
    share = s.shares[index]
    networks = masked_networks.pruned(s, networks, share, index)
    at_once = test(*masked_networks.parts(networks.variables))
    title = f"round {index + 1} of {len(s.shares)}, {100 * share:.3g} % of the FLOPs"
    first = s.steps + index * s.more
    networks = masked_networks.train(s, networks, s.more_rates, s.more, first, title, journal)
    accuracy = test(*masked_networks.parts(networks.variables))
    record: dict[str, Any] = {"round": index + 1, "step": first + s.more, "flops_asked": share}
    n = len(s.keys)
    for i, arm in enumerate((DENSE, *s.scores)):
        own = slice(i * n, (i + 1) * n)
        record[arm] = {
            "before_training_on": at_once[own].tolist(),
            "test_accuracy": accuracy[own].tolist(),
        }
        if arm != DENSE:
            record[arm] |= _sizes(s, masked_networks.of_arm(s, networks, i))
    return networks, record


def removed(
    s: Study, networks: Networks, share: float, dataset: Dataset, out: Path
) -> dict[str, dict[str, list[Any]]]:
    """Compacts and saves the networks of each score; how they differ from the masked ones."""
    image, found = dataset.train.images.shape[1:], {}
    for i, arm in enumerate(s.scores, 1):
        seeds, told = [], []
        for k in range(len(s.keys)):
            variables, kept = training.seed_of(masked_networks.of_arm(s, networks, i), k)
            kept = masked_networks.known(kept)
            small = jp.compact(s.structure, variables, kept)
            seeds.append((kept, small.params))
            masked = Compact(variables, s.module.apply)
            told.append(compacted.compare(masked, small, dataset.test))
        path = out / model_path(arm, share)
        run.remove(path)  # of a round that was stopped
        compacted.save(path, s.network, image, seeds)
        found[arm] = {key: [own[key] for own in told] for key in told[0]}
    return found


def model_path(arm: str, share: float) -> str:
    """Where the compacted networks of a score are, below the folder of the run."""
    return f"{run.MODEL}/{arm}-{100 * share:g}"


def _sizes(s: Study, networks: Networks) -> dict[str, list[Any]]:
    """Weights, FLOPs and widths of the networks of an arm."""
    kept = [masked_networks.known(training.seed_of(networks.kept, k)) for k in range(len(s.keys))]
    sizes = [before_after.size_of(s.structure, own)._asdict() for own in kept]
    return {key: [own[key] for own in sizes] for key in before_after.Size._fields}


def _state(networks: Networks) -> dict[str, Any]:
    """What is settled: names of groups have slashes, which make no names in a checkpoint."""
    kept = {str(i): own for i, own in enumerate(networks.kept.values())}
    return {"variables": networks.variables, "kept": kept}


def _settled(s: Study, journal: Journal) -> Networks | None:
    """The networks of the last round that the journal holds."""
    arms = 1 + len(s.scores)
    copied = lambda: masked_networks.copies(masked_networks.untrained(s), arms)
    state = journal.last(jax.eval_shape(lambda: _state(copied())))
    if state is None:
        return None
    kept = {name: state["kept"][str(i)] for i, name in enumerate(s.structure.groups)}
    return Networks(state["variables"], kept)
