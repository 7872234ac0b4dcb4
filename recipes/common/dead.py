"""Dead networks: their accuracy is at chance, or a layer has no weight.

An accuracy carries these signs beside its mean, so that no table prints it without the mark.
`report.finish` lists the signs after every table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

MARK = "†"
NOT_MEASURED = "n/a"
ON_TERMINAL = 6  # lines; the rest is in report.md


def chance(labels: np.ndarray) -> float:
    """The highest accuracy that is chance, as a fraction; test `labels` are int (n,) or (n, t).

    It is the share p of the largest class, and its standard error sqrt(p (1 - p) / n).
    """
    share = np.bincount(labels.ravel()).max() / labels.size
    return float(share + np.sqrt(share * (1 - share) / labels.size))


def signs(accuracy: Any, chance: float, empty_layers: Mapping[str, int]) -> dict[str, Any]:
    """The signs of an accuracy (seeds,): {at_chance: by seed, empty_layers: {path: seeds}}."""
    at_chance = np.asarray(accuracy) <= chance
    return {"at_chance": at_chance.tolist(), "empty_layers": dict(empty_layers)}


def empty_layers(masks: Any) -> dict[str, int]:
    """{path: the number of seeds in which the layer is empty} of stacked masks."""
    found = {}
    for path, mask in jax.tree_util.tree_leaves_with_path(masks):
        kept = np.asarray(mask).reshape(len(mask), -1).any(1)
        if not kept.all():
            found[jax.tree_util.keystr(path, simple=True, separator="/")] = int((~kept).sum())
    return found


def at_chance(numbers: Mapping[str, Any]) -> bool:
    """Whether at least one seed is at chance."""
    return any(numbers.get("at_chance", ()))


def mark(numbers: Mapping[str, Any]) -> str:
    """The mark behind an accuracy in a table."""
    return f" {MARK}" if at_chance(numbers) or numbers.get("empty_layers") else ""


def told(summary: Mapping[str, Any]) -> list[str]:
    """A line for each accuracy in a summary with a dead network.

    Raises KeyError for a test accuracy without its `signs`: no recipe may leave them out.
    """
    return [
        f"{MARK} {name}: {'; '.join(said)}"
        for name, numbers in _accuracies(summary)
        if (said := list(_in_words(numbers, summary["chance"])))
    ]


def _in_words(numbers: Mapping[str, Any], chance: float) -> Iterator[str]:
    seeds = len(numbers["per_seed"])
    if count := sum(numbers["at_chance"]):
        yield f"{count} of {seeds} seeds at chance (test accuracy of {100 * chance:.1f} % or less)"
    for path, count in numbers["empty_layers"].items():
        yield f"{path} keeps no weight in {count} of {seeds} seeds"


def _accuracies(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All test accuracies of a summary, named by the keys that lead to them."""
    if isinstance(node, Mapping):
        if "per_seed" in node:
            if "test_accuracy" in path:
                words = [p for p in path if p not in ("arms", "networks", "test_accuracy")]
                yield ", ".join(words) or "the network", node
            return
        for key, value in node.items():
            yield from _accuracies(value, (*path, key))
    elif isinstance(node, list):
        for i, value in enumerate(node):  # phases, forks
            known = (k for k in ("phase", "step") if isinstance(value, Mapping) and k in value)
            key = next(known, None)
            name = f"{key} {value[key]:,}" if key else f"{i + 1}"
            yield from _accuracies(value, (*path, name))
