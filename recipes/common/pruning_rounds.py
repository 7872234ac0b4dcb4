"""Rounds of structured pruning: score, prune to a share of the FLOPs, train on; logged, resumable.

At each target the neurons that were masked are really removed, and the compacted networks are held
against the masked ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from jaxprune.structured.compact import Compact
from recipes.common import (
    before_after,
    checkpoint,
    compacted,
    interrupt,
    masked_networks,
    run,
    training,
)
from recipes.common.data import Dataset
from recipes.common.errors import RecipeError
from recipes.common.masked_networks import Networks, Study
from recipes.common.phases import At
from recipes.common.progress import progress
from recipes.common.side_by_side import Folder

DENSE = "dense"  # the arm that trains on and is not pruned

Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a round
Signalled = Callable[[], int | None]
Test = Callable[[Any, Any], np.ndarray]  # (params, batch_stats), of a stack -> accuracy


def shares(targets: Sequence[float], rounds: int) -> list[float]:
    """From 1 to each target in so many rounds, each of which leaves the same fraction."""
    found, before = [], 1.0
    for target in targets:
        found += [before * (target / before) ** (i / rounds) for i in range(1, rounds)]
        found.append(before := target)
    return found


def all_rounds(s: Study, dataset: Dataset, folder: Folder, signalled: Signalled) -> Records:
    """Every round that metrics.jsonl does not hold yet, from the last checkpoint on.

    A round is logged, and then saved: what is logged beyond the checkpoint is done again.
    """
    metrics, saved = folder.out / run.METRICS, folder.out / run.CHECKPOINT
    test = training.make_evaluate(s.module, dataset.test)
    records: Records = []

    def keep(record: dict[str, Any], networks: Networks) -> None:
        records.append(record)
        run.append(metrics, record)
        checkpoint.save_checkpoint(saved, record["round"], _state(networks))

    if folder.resume:
        done, networks = _resumed(s, saved)
        records += _logged(metrics, done)
    else:
        networks, record = first_round(s, test, signalled)
        keep(record, networks)
    for index in range(len(records) - 1, len(s.shares)):
        whole = f"stopped after {index} of {len(s.shares)} rounds; "
        stopped = f"{whole}go on with: {folder.resume_command}"
        interrupt.stop_if(signalled(), stopped)
        began = time.perf_counter()
        networks, record = one_round(s, networks, index, test, signalled, stopped)
        if s.shares[index] in s.targets:
            for arm, told in removed(s, networks, s.shares[index], dataset, folder.out).items():
                record[arm] |= told
        record["seconds"] = round(records[-1]["seconds"] + time.perf_counter() - began, 2)
        keep(record, networks)
    return records


def first_round(s: Study, test: Test, signalled: Signalled) -> tuple[Networks, dict[str, Any]]:
    """Trains the networks that are pruned; a copy of them for each arm, and what is logged."""
    began = time.perf_counter()
    with progress("dense", s.steps) as show:
        stopped = "stopped before the first round; nothing was saved"
        at = _between(show, len(s.keys), signalled, stopped)
        untrained = masked_networks.untrained(s)
        trained = masked_networks.train(s, untrained, s.rates, s.steps, at, 0)
    record = {
        "round": 0,
        "step": s.steps,
        "seconds": round(time.perf_counter() - began, 2),
        DENSE: {"test_accuracy": test(*masked_networks.parts(trained.variables)).tolist()},
    }
    return masked_networks.copies(trained, 1 + len(s.scores)), record


def one_round(
    s: Study,
    networks: Networks,
    index: int,
    test: Test,
    signalled: Signalled,
    stopped: str,
) -> tuple[Networks, dict[str, Any]]:
    """Prunes every arm but the dense one, and trains on; and what is logged of it."""
    share = s.shares[index]
    networks = masked_networks.pruned(s, networks, share, index)
    at_once = test(*masked_networks.parts(networks.variables))
    title = f"round {index + 1} of {len(s.shares)}, {100 * share:.3g} % of the FLOPs"
    with progress(title, s.more) as show:
        at = _between(show, len(at_once), signalled, stopped)
        first = s.steps + index * s.more
        networks = masked_networks.train(s, networks, s.more_rates, s.more, at, first)
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


def _between(show: Any, networks: int, signalled: Signalled, stopped: str) -> At:
    """What to do between calls of the device."""

    def at(step: int) -> None:
        show(step, f"{networks} networks")
        interrupt.stop_if(signalled(), stopped)

    return at


def _state(networks: Networks) -> dict[str, Any]:
    """What a checkpoint holds: names of groups have slashes, which make no names there."""
    kept = {str(i): own for i, own in enumerate(networks.kept.values())}
    return {"variables": networks.variables, "kept": kept}


def _resumed(s: Study, saved: Path) -> tuple[int, Networks]:
    """The round that a stopped run came to, and its networks."""
    arms = 1 + len(s.scores)
    copied = lambda: masked_networks.copies(masked_networks.untrained(s), arms)
    done, state = checkpoint.load_checkpoint(saved, jax.eval_shape(lambda: _state(copied())))
    kept = {name: state["kept"][str(i)] for i, name in enumerate(s.structure.groups)}
    return done, Networks(state["variables"], kept)


def _logged(metrics: Path, done: int) -> Records:
    """The lines up to this round; those after it are taken off the file."""
    records = [record for record in run.read_lines(metrics) if record["round"] <= done]
    if [record["round"] for record in records] != list(range(done + 1)):
        raise RecipeError(
            f"--resume: '{metrics}' lacks rounds that the checkpoint is past; start anew with "
            "--overwrite"
        )
    run.write(metrics, "".join(json.dumps(record) + "\n" for record in records))
    return records
