"""Rounds of structured pruning: score, prune to a share of the FLOPs, train on; logged.

At each target the neurons that were masked are really removed, and the compacted networks are held
against the masked ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxprune as jp
from jaxprune.structured.compact import Compact
from recipes.common import before_after, compacted, run, training
from recipes.common.data import Dataset
from recipes.common.journal import Journal
from recipes.common.masked_networks import (
    Networks,
    Study,
    copies,
    known,
    of_arm,
    parts,
    pruned,
    train,
    untrained,
)

DENSE = "dense"  # the arm that trains on and is not pruned

Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a round
Test = Callable[[Any, Any], np.ndarray]  # (params, batch_stats), of a stack -> accuracy


class Settled(NamedTuple):
    """What goes from round to round; every array has an axis of networks in front."""

    variables: Any
    kept: tuple[jax.Array, ...]  # in the order of the groups


def shares(targets: Sequence[float], rounds: int) -> list[float]:
    """From 1 to each target in so many rounds, each of which leaves the same fraction."""
    found, before = [], 1.0
    for target in targets:
        found += [before * (target / before) ** (i / rounds) for i in range(1, rounds)]
        found.append(before := target)
    return found


def all_rounds(s: Study, dataset: Dataset, journal: Journal, out: Path) -> Records:
    """Every round that the journal does not hold yet."""
    test = training.make_evaluate(s.module, dataset.test)
    spent = journal.records[-1]["seconds"] if journal.records else 0.0
    began = time.perf_counter() - spent
    settled = journal.last(jax.eval_shape(lambda: _settled(s, copies(s, untrained(s)))))
    for index in range(len(journal.records), len(s.shares) + 1):
        if settled is None:
            networks, record = first_round(s, test, journal)
        else:
            by_name = dict(zip(s.structure.groups, settled.kept, strict=True))
            before = Networks(settled.variables, by_name)
            networks, record = one_round(s, before, index - 1, test, journal)
            if s.shares[index - 1] in s.targets:
                for arm, told in removed(s, networks, s.shares[index - 1], dataset, out).items():
                    record[arm] |= told
        journal.log(record | {"seconds": round(time.perf_counter() - began, 2)})
        settled = _settled(s, networks)
        journal.settle(settled)
    return journal.records


def first_round(s: Study, test: Test, journal: Journal) -> tuple[Networks, dict[str, Any]]:
    """Trains the networks that are pruned; a copy of them for each arm, and what is logged."""
    trained = train(s, untrained(s), s.rates, s.steps, 0, "dense", journal)
    record = {
        "round": 0,
        "step": s.steps,
        DENSE: {"test_accuracy": test(*parts(trained.variables)).tolist()},
    }
    return copies(s, trained), record


def one_round(
    s: Study, networks: Networks, index: int, test: Test, journal: Journal
) -> tuple[Networks, dict[str, Any]]:
    """Prunes every arm but the dense one, and trains on; and what is logged of it."""
    share, first = s.shares[index], s.steps + index * s.more
    networks = pruned(s, networks, share, index)
    at_once = test(*parts(networks.variables))
    name = f"round {index + 1} of {len(s.shares)}, {100 * share:.3g} % of the FLOPs"
    networks = train(s, networks, s.more_rates, s.more, first, name, journal)
    accuracy = test(*parts(networks.variables))
    record: dict[str, Any] = {"round": index + 1, "step": first + s.more, "flops_asked": share}
    n = len(s.keys)
    for i, arm in enumerate((DENSE, *s.scores)):
        own = slice(i * n, (i + 1) * n)
        record[arm] = {
            "before_training_on": at_once[own].tolist(),
            "test_accuracy": accuracy[own].tolist(),
        }
        if arm != DENSE:
            record[arm] |= _sizes(s, of_arm(s, networks, i))
    return networks, record


def removed(
    s: Study, networks: Networks, share: float, dataset: Dataset, out: Path
) -> dict[str, dict[str, list[Any]]]:
    """Compacts and saves the networks of each score; how they differ from the masked ones."""
    image, found = dataset.train.images.shape[1:], {}
    for i, arm in enumerate(s.scores, 1):
        seeds, told = [], []
        for k in range(len(s.keys)):
            variables, kept = training.seed_of(of_arm(s, networks, i), k)
            kept = known(kept)
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
    kept = [known(training.seed_of(networks.kept, k)) for k in range(len(s.keys))]
    sizes = [before_after.size_of(s.structure, own)._asdict() for own in kept]
    return {key: [own[key] for own in sizes] for key in before_after.Size._fields}


def _settled(s: Study, networks: Networks) -> Settled:
    return Settled(networks.variables, tuple(networks.kept[name] for name in s.structure.groups))
