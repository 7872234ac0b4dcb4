"""The numbers of a finished run: mean and spread over seeds, memory, versions."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from recipes.common import dead

PACKAGES = ("jaxprune", "jax", "flax", "optax", "numpy")


def over_seeds(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """{mean, std, per_seed}; std is the sample's (n - 1), 0 for one seed."""
    per_seed = np.asarray(values, np.float64)
    std = per_seed.std(ddof=1) if per_seed.size > 1 else 0.0
    return {"mean": float(per_seed.mean()), "std": float(std), "per_seed": per_seed.tolist()}


def accuracy(
    values: Sequence[float] | np.ndarray, chance: float, empty_layers: Mapping[str, int] = {}
) -> dict[str, Any]:
    """`over_seeds` of a test accuracy, with the signs of dead networks: see `dead`."""
    return over_seeds(values) | dead.signs(values, chance, empty_layers)


def percent(numbers: dict[str, Any]) -> str:
    """`over_seeds` of fractions as "97.81 ± 0.12 %"; marked if it is the accuracy of the dead.

    One seed has no deviation: "97.81 %".
    """
    deviation = f" ± {100 * numbers['std']:.2f}" if len(numbers["per_seed"]) > 1 else ""
    return f"{100 * numbers['mean']:.2f}{deviation} %{dead.mark(numbers)}"


def plus_minus(numbers: dict[str, Any], decimals: int, factor: float = 1) -> str:
    """A mean and its "error" as "0.12 ± 0.01", without an error that is None.

    "n/a" if the mean is None, as that of barriers between networks at chance.
    """
    if numbers["mean"] is None:
        return dead.NOT_MEASURED
    mean, error = f"{factor * numbers['mean']:.{decimals}f}", numbers["error"]
    return mean if error is None else f"{mean} ± {factor * error:.{decimals}f}"


def layers(params: Any, masks: Any, *forward: Any, ever_active: Any = None) -> str:
    """`jp.report` as text."""
    with warnings.catch_warnings():  # its text says the same
        warnings.simplefilter("ignore", UserWarning)
        return str(jp.report(params, masks, *forward, ever_active=ever_active))


def kept_weights(masks: Any) -> tuple[np.ndarray, int]:
    """(weights kept by each seed, int (seeds,); prunable weights of one seed) of stacked masks."""
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    kept = np.sum([mask.reshape(len(mask), -1).sum(1) for mask in leaves], axis=0)
    return kept, sum(mask[0].size for mask in leaves)


def layer_density(masks: Any) -> dict[str, np.ndarray]:
    """{path: fraction kept by each seed (seeds,)} of stacked masks, layer 2 before layer 10."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(mask)
        for path, mask in jax.tree_util.tree_leaves_with_path(masks)
    }
    density = {path: mask.reshape(len(mask), -1).mean(1) for path, mask in leaves.items()}

    def numbers_as_such(path: str) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]

    return dict(sorted(density.items(), key=lambda item: numbers_as_such(item[0])))


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays in a pytree."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def peak_memory_bytes() -> int:
    """The most memory that this process has held: on the accelerator if there is one, else RSS."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return int(statistics["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


def versions() -> dict[str, str]:
    """Of Python, and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree
            found[package] = "not installed"
    return found


def environment() -> dict[str, str]:
    """What the numbers depend on beside the configuration: versions and the device."""
    return {**versions(), "device": jax.local_devices()[0].device_kind}
