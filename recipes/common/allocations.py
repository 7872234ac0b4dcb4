"""How much of each layer a method prunes: as much of each, or as a rule says.

References: Lee et al., 2021, Layer-Adaptive Sparsity for the Magnitude-based Pruning; Xu et al.,
2023, Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

import jaxprune as jp
from jaxprune.base import is_count
from jaxprune.trees import present_leaves

ALLOCATIONS = ("uniform", "lamp", "rd")
POINTS, WINDOWS = 20, 32  # of a curve of distortion, and what it is measured on
Curves = Callable[[], Mapping[str, Any]]  # () -> the distortion of each kernel, by its path
Target = tuple[int, int] | dict[str, float]  # n of m stay; or the sparsity of each kernel by path


def fraction_of(sparsity: str) -> float | tuple[int, int]:
    """The fraction "0.5", or "2:4" as (2, 4); raises ValueError for anything else."""
    if ":" in sparsity:
        n, m = map(int, sparsity.split(":"))
        if not 1 <= n < m:
            raise ValueError(sparsity)
        return n, m
    if not 0 < float(sparsity) < 1:
        raise ValueError(sparsity)
    return float(sparsity)


def target_of(allocation: str, sparsity: str, params: Any, curves: Curves) -> Target:
    """What a method is asked for, for one network."""
    fraction = fraction_of(sparsity)
    if isinstance(fraction, tuple):
        return fraction
    return allocated(allocation, params, fraction, curves)


def curves(forward: Callable[..., Any], params: Any, batches: Sequence[Any]) -> Mapping[str, Any]:
    """The distortion of each kernel, on a few windows of the first batch."""
    return jp.calibration.distortion_curves(forward, params, [batches[0][:WINDOWS]], POINTS)


def by_kernel(targets: Sequence[Target]) -> dict[str, list[float]]:
    """By path the sparsity of a kernel in each network; nothing of N:M."""
    fractions = [target for target in targets if isinstance(target, dict)]
    return {path: [each[path] for each in fractions] for path in (*fractions, {})[0]}


def allocated(name: str, params: Any, sparsity: float, curves: Curves) -> dict[str, float]:
    """The sparsity of each kernel, by its path, that an allocation gives for all together.

    uniform is the same for each. lamp is what one threshold of LAMP's scores over all kernels
    leaves. rd is the least sum of the distortions that `curves()` gives for each kernel alone.
    """
    kernels = jp.kernels(params)
    scores: Any = (jp.lamp() if name == "lamp" else jp.magnitude)(kernels)
    how = {"uniform": jp.uniform, "lamp": jp.global_threshold}
    rule = how[name] if name in how else jp.allocation.least_distortion(curves())
    given = zip(present_leaves(kernels), jax.tree.leaves(rule(scores, sparsity)), strict=True)
    return {path: int(x) / w.size if is_count(x) else float(x) for (path, w), x in given}
