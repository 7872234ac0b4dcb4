"""Compacted networks: saved, loaded, and compared with the networks that they were.

A fresh process needs no original weights: it reads the program of the network on shapes. The table
compares weights, FLOPs, measured latency and accuracy, before and after.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import jaxprune as jp
from jaxprune.structured import Compact, Removal, Structure
from recipes.common import checkpoints, folder, lanes, models, report
from recipes.common.data import Dataset, Split
from recipes.common.folder import RecipeError
from recipes.common.settings import Settings
from recipes.common.timing import CONTROL

KEPT = "kept.json"  # beside the arrays

Kept = Mapping[str, Any] | Removal  # bool (size,) by group


def network_of(config: Settings, dataset: Dataset) -> tuple[dict[str, Any], nn.Module]:
    """The network of the flags: the arguments of `models.model`, and the module."""
    network: dict[str, Any] = {
        "name": config.model,
        "classes": dataset.classes,
        "norm": config.norm,
        "width": config.width,
    }
    return network, models.model(**network)


def shapes_of(module: nn.Module, image: Sequence[int]) -> tuple[Any, jax.ShapeDtypeStruct]:
    """All variables of a network, and one image (h, w, c): what `jp.analyze` takes."""
    one = jax.ShapeDtypeStruct((1, *image), np.float32)
    return jax.eval_shape(module.init, jax.random.key(0), one), one


def by_group(structure: Structure, values: Sequence[Any]) -> dict[str, Any]:
    """Values by group, from their order: a name in a checkpoint has no slash."""
    return dict(zip(structure.groups, values, strict=True))


def save(
    path: Path,
    network: Mapping[str, Any],
    image: Sequence[int],
    seeds: Sequence[tuple[Kept, Any]],
) -> None:
    """Writes the compacted networks of all seeds, which differ in size.

    Args:
      network: the arguments of `models.model`.
      image: (h, w, c).
      seeds: (kept neurons, small variables) of each.
    """
    checkpoints.write(path, {str(i): variables for i, (_, variables) in enumerate(seeds)})
    removals = [kept if isinstance(kept, Removal) else Removal(kept, ()) for kept, _ in seeds]
    kept = [
        {name: np.flatnonzero(mask).tolist() for name, mask in removal.kept.items()}
        for removal in removals
    ]
    removed = [list(removal.removed) for removal in removals]
    content = {"network": dict(network), "image": list(image), "kept": kept, "removed": removed}
    folder.write(path / KEPT, json.dumps(content) + "\n")


def side_by_side(
    compacts: Sequence[Compact], image: Sequence[int]
) -> tuple[Callable[..., Any], Any]:
    """(the function of all, a stack of their params) of compacted networks with one program.

    Raises `RecipeError` if the programs differ, as where layers keep other numbers of neurons.
    """
    images = jnp.zeros((1, *image))
    programs = {str(jax.make_jaxpr(one.fn)(one.params, images)) for one in compacts}
    if len(programs) > 1:
        raise RecipeError(
            "--seeds: the compacted networks of the seeds have other shapes, and can't train side "
            "by side; take --seeds 1"
        )
    return compacts[0].fn, lanes.stacked(one.params for one in compacts)


def compare(masked: Compact, small: Compact, test: Split, batch_size: int = 250) -> dict[str, Any]:
    """The accuracy of the compacted network on test data, and how it differs from the masked one.

    `largest_difference` is between logits, `answers_that_differ` counts classes.
    """
    n = len(test.labels)
    batch_size = min(batch_size, n)

    def logits(network: Compact) -> np.ndarray:
        fn, batches = jax.jit(network.fn), []
        for first in range(0, n, batch_size):
            images = test.images[min(first, n - batch_size) :][:batch_size]  # the last is full too
            new = min(batch_size, n - first)
            batches.append(np.asarray(fn(network.params, images))[-new:])
        return np.concatenate(batches)

    before, after = logits(masked), logits(small)
    return {
        "compacted_accuracy": float(np.mean(after.argmax(1) == test.labels)),
        "largest_difference": float(np.abs(before - after).max()),
        "answers_that_differ": int(np.sum(before.argmax(1) != after.argmax(1))),
    }


def load(path: Path, seed: int = 0) -> Compact:
    """The saved network of a seed, by its place: `small.fn(small.params, images) -> logits`."""
    content = json.loads((path / KEPT).read_text())
    module = models.model(**content["network"])
    structure = jp.analyze(module.apply, *shapes_of(module, content["image"]))
    kept = {
        name: np.isin(np.arange(structure.groups[name].size), indices)
        for name, indices in content["kept"][seed].items()
    }
    with ocp.StandardCheckpointer() as checkpointer:
        variables = checkpointer.restore(path.absolute())[str(seed)]
    removed = tuple(content["removed"][seed])
    return Compact(variables, jp.structured.replay(structure, Removal(kept, removed)))


READING = (
    "what is left of the weights and FLOPs of the first row, and how many times as fast a batch of "
    "so many images is read: medians of paired times; A/A is the first row against itself"
)


class Size(NamedTuple):
    """How large a network is."""

    weights: int  # without running statistics
    flops: int  # of one image; a multiply and an add are 2
    widths: dict[str, int]  # neurons by group


def size_of(structure: Structure, kept: Kept) -> Size:
    """The size of the network of the kept neurons.

    Args:
      structure: of `analyze(module.apply, variables, one_image)`.
      kept: bool (size,) by group; a group that is not named keeps all. Or a `structured.Removal`.
    """
    left = jp.structured.shrink(structure, structure.shapes, kept)["params"]
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(left))
    neurons = kept.kept if isinstance(kept, Removal) else kept
    widths = {name: group.size for name, group in structure.groups.items()}
    widths |= {name: int(np.sum(mask)) for name, mask in neurons.items()}
    return Size(weights, jp.structured.cost(structure, kept).flops, widths)


def numbers(
    sizes: Mapping[str, Sequence[Size]],
    accuracy: Mapping[str, np.ndarray],
    differences: Mapping[str, Mapping[str, Any]],
    latencies: Mapping[str, Mapping[str, Any]],
    chance: float,
) -> dict[str, Any]:
    """The end of a summary.json: by network, lists over seeds.

    Args:
      sizes: of each network, of all its seeds; the first network is the one before.
      accuracy: fractions (seeds,) on test data.
      differences: of `compare`, between masked and compacted networks.
      latencies: of `timing.latencies`, for the first seed's networks or some of them.
      chance: of `dead.chance`, on the same test data.
    """
    before = next(iter(sizes.values()))
    networks = {
        name: {
            "test_accuracy": report.accuracy(accuracy[name], chance),
            "weights": [size.weights for size in seeds],
            "flops": [size.flops for size in seeds],
            "weights_left": _share(seeds, before, "weights"),
            "flops_left": _share(seeds, before, "flops"),
            "widths": [size.widths for size in seeds],
            "latency": {batch: by[name] for batch, by in latencies.items() if name in by},
        }
        for name, seeds in sizes.items()
    }
    return {
        "chance": chance,
        "networks": networks,
        "masked_and_compacted": differences,
        "latency": latencies,
    }


def difference(summary: Mapping[str, Any]) -> str:
    """How much compacted networks differ from the masked ones, in words."""
    arms = summary["masked_and_compacted"].values()
    largest = max(np.max(arm["largest_difference"]) for arm in arms)
    differ = sum(int(np.sum(arm["answers_that_differ"])) for arm in arms)
    return f"logits differ by at most {largest:.1e}, {differ} answers on test data do"


def _share(after: Sequence[Size], before: Sequence[Size], what: str) -> list[float]:
    pairs = zip(after, before, strict=True)
    return [getattr(now, what) / getattr(then, what) for now, then in pairs]


def widths(network: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Neurons by group (seeds,), of a network of `numbers`."""
    seeds = network["widths"]
    return {group: np.array([sizes[group] for sizes in seeds]) for group in seeds[0]}


def table(
    networks: Mapping[str, Mapping[str, Any]], latencies: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the networks of `numbers`: all rows but the first are relative to it."""
    batches = list(latencies)
    columns = ["test accuracy", "weights", "FLOPs", *(f"batch {batch}" for batch in batches)]
    rows = []
    for i, (name, network) in enumerate(networks.items()):
        cells = [name, report.percent(network["test_accuracy"])]
        if i == 0:
            cells += [f"{network['weights'][0]:,}", _large(network["flops"][0])]
        else:
            cells += [_percent(network[key]) for key in ("weights_left", "flops_left")]
        cells += [_time(network["latency"].get(batch), first=i == 0) for batch in batches]
        rows.append(cells)
    band = [by[CONTROL]["times_as_fast"] for by in latencies.values()]
    spreads = [f"{spread['low']:.2f}-{spread['high']:.2f}x" for spread in band]
    return columns, [*rows, [CONTROL, "", "", "", *spreads]] if batches else rows


def _large(n: int) -> str:
    for scale, unit in ((1e9, "G"), (1e6, "M")):
        if n >= scale:
            return f"{n / scale:.3g} {unit}"
    return f"{n:,}"


def _percent(shares: Sequence[float]) -> str:
    return f"{100 * np.mean(shares):.1f} %"


def _time(latency: Any, first: bool) -> str:
    if latency is None:
        return ""
    if first:
        return f"{1e3 * latency['seconds']['median']:.3g} ms"
    return f"{latency['times_as_fast']['median']:.2f}x"
