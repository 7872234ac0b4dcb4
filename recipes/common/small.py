"""Compacted networks on disk: the small arrays, and which neurons of which network they are.

A fresh process needs no original weights: it reads the program of the network on shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import orbax.checkpoint as ocp

import jaxprune as jp
from jaxprune.coupling.structure import Structure
from jaxprune.structured.compact import Compact
from jaxprune.structured.kept import Kept, Removal
from recipes.common import checkpoint, folder, models
from recipes.common.data import Split

KEPT = "kept.json"  # beside the arrays


def structure_of(module: nn.Module, image: Sequence[int]) -> Structure:
    """The neurons of a network as it is evaluated, on one image (h, w, c): of all its variables."""
    one = jax.ShapeDtypeStruct((1, *image), np.float32)
    return jp.analyze(module.apply, jax.eval_shape(module.init, jax.random.key(0), one), one)


def save(
    path: Path,
    network: Mapping[str, Any],
    image: Sequence[int],
    seeds: Sequence[tuple[Kept, Any]],
) -> None:
    """Writes the compacted networks of all seeds, each with sizes of its own.

    Args:
      network: what `models.model` was called with.
      image: (h, w, c).
      seeds: (kept neurons, or what is removed too, small variables) of each.
    """
    checkpoint.write(path, {str(i): own for i, (_, own) in enumerate(seeds)})
    removals = [own if isinstance(own, Removal) else Removal(own, ()) for own, _ in seeds]
    kept = [
        {name: np.flatnonzero(own).tolist() for name, own in removal.kept.items()}
        for removal in removals
    ]
    removed = [list(removal.removed) for removal in removals]
    content = {"network": dict(network), "image": list(image), "kept": kept, "removed": removed}
    folder.write(path / KEPT, json.dumps(content) + "\n")


def compare(whole: Compact, small: Compact, test: Split, batch_size: int = 250) -> dict[str, Any]:
    """The accuracy of the compacted network on test data, and how it differs from the whole one.

    `largest_difference` is between logits, `answers_that_differ` counts classes.
    """
    n = len(test.labels)
    batch_size = min(batch_size, n)
    apply = [jax.jit(own.fn) for own in (whole, small)]
    logits: list[list[np.ndarray]] = [[], []]
    for first in range(0, n, batch_size):
        images = test.images[min(first, n - batch_size) :][:batch_size]  # the last is a whole one
        for found, fn, own in zip(logits, apply, (whole, small), strict=True):
            found.append(np.asarray(fn(own.params, images))[-min(batch_size, n - first) :])
    before, after = (np.concatenate(own) for own in logits)
    return {
        "compacted_accuracy": float(np.mean(after.argmax(1) == test.labels)),
        "largest_difference": float(np.abs(before - after).max()),
        "answers_that_differ": int(np.sum(before.argmax(1) != after.argmax(1))),
    }


def load(path: Path, seed: int = 0) -> Compact:
    """What was saved of the seed at this place: `small.fn(small.params, images) -> logits`."""
    content = json.loads((path / KEPT).read_text())
    structure = structure_of(models.model(**content["network"]), content["image"])
    kept = {
        name: np.isin(np.arange(structure.groups[name].size), indices)
        for name, indices in content["kept"][seed].items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(path.absolute())[str(seed)]
    removed = tuple(content["removed"][seed])
    return Compact(variables, jp.replay(structure, Removal(kept, removed)))
