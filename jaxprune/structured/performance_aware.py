"""PAGCP: neurons leave group by group, while the loss of every task stays within its allowance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.allocation.layerwise import uniform
from jaxprune.base import Params, Scores
from jaxprune.coupling.structure import Structure
from jaxprune.masks import apply_masks
from jaxprune.structured.check import check_all
from jaxprune.structured.cost import counter
from jaxprune.structured.kept import masks
from jaxprune.structured.pick import Neurons, checked, choose

RATIOS = tuple(i / 10 for i in range(1, 10))
TRIAL = 0.3  # of a group's neurons: what goes where the FLOPs of groups are compared


def performance_aware(
    structure: Structure,
    params: Params,
    scores: Scores,
    losses: Callable[[Params], Any],
    growth: float = 5.0,
    first: float = 0.05,
    ratios: Sequence[float] = RATIOS,
    share: float = 1.0,
    round_to: int = 1,
    groups: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The neurons that are kept: each group loses as many as the losses of all tasks allow.

        kept = performance_aware(structure, params, scores, losses)
        small = compact(structure, params, kept)

    Groups that save the most FLOPs come first (our reading of the paper). In each group ever more
    neurons of the lowest scores go, until a task's loss is above its base times 1 + r; the last
    number that was within stays. r begins at `first` and grows by a factor from group to group, so
    that all allowances together multiply the loss by `growth`: see `allowances`. The base of the
    next group is the highest loss so far. At the end only the best `share` of the groups that lost
    neurons stay pruned, by the loss that they cost for the FLOPs that they save.

    Train between rounds: prune, tune the compact network, analyze it and prune again.

    Args:
      structure: of `analyze`.
      params: all the params that were analyzed.
      scores: {group: (size,)}, as `per_group` gives them; the authors take the L1 norm.
      losses: `params -> loss`, a scalar, or (tasks,) of several tasks; positive. Pruned neurons are
        zero in these params. It is called once for each group and ratio, at the most: jit it.
      growth: how many times its first value the loss may be at the end, above 1 + `first`.
      first: the allowance of the first group, positive.
      ratios: the fractions of a group's neurons that may go, in (0, 1), rising.
      share: the fraction of the pruned groups that stay pruned, in (0, 1].
      round_to, groups: as in `pick`.

    Returns:
      {group: bool (size,)}, True = kept; each group keeps a neuron.

    Raises:
      ValueError: for numbers that can't be, for scores and params that do not fit the structure,
        and for a loss that is not positive and finite before anything is pruned.

    Reference: Ye et al., 2023, Performance-aware Approximation of Global Channel Pruning for
    Multitask CNNs.
    """
    check_all("performance_aware", structure, params)
    scores = checked(structure, scores, round_to, groups)
    if not 0 < share <= 1:
        raise ValueError(f"performance_aware: share is in (0, 1]; got {share}.")
    if not ratios or not all(0 < a < b for a, b in zip(ratios, [*ratios[1:], 1.0], strict=True)):
        raise ValueError(f"performance_aware: ratios rise, in (0, 1); got {tuple(ratios)}.")
    flops = counter(structure)
    pruned = lambda name, ratio: np.asarray(
        choose({name: scores[name]}, uniform, ratio, round_to)[name]
    )

    def of(kept: Neurons) -> np.ndarray:
        found = losses(apply_masks(params, masks(structure, kept)))
        return np.atleast_1d(np.asarray(found, np.float64))

    base = of({})
    if base.ndim != 1 or not (np.isfinite(base).all() and (base > 0).all()):
        raise ValueError(
            "performance_aware: losses(params) is positive and finite, a scalar or (tasks,); got "
            f"{base.tolist()} before anything is pruned."
        )
    without = {name: flops({name: pruned(name, TRIAL)}).flops for name in scores}
    kept: Neurons = {}
    worth: dict[str, float] = {}  # the loss that a group costs for the FLOPs that it saves
    before, left = base, flops({}).flops
    for name, allowed in zip(
        sorted(scores, key=lambda name: without[name]),
        allowances(len(scores), growth, first),
        strict=True,
    ):
        within = None
        for ratio in ratios:
            trial = pruned(name, ratio)
            if trial.all():
                continue  # too few neurons for this ratio
            now = of({**kept, name: trial})
            if not (now <= base * (1 + allowed)).all():  # nan is not within
                break
            within = trial, now
        if within is not None:
            kept[name], now = within
            fewer = flops(kept).flops
            worth[name] = float((now - before).max()) / max(left - fewer, 1)
            before, left, base = now, fewer, np.maximum(base, now)
    best = sorted(worth, key=lambda name: worth[name])[: math.ceil(share * len(worth))]
    every = {name: np.ones(group.size, bool) for name, group in structure.groups.items()}
    return {name: jnp.asarray(kept[name] if name in best else every[name]) for name in every}


def allowances(n: int, growth: float = 5.0, first: float = 0.05) -> list[float]:
    """`first` f^i for i = 0, ..., n - 1, such that the product of all 1 + `first` f^i is `growth`.

    Of one group it is growth - 1.

    Raises:
      ValueError: unless n is positive and growth > 1 + first > 1.

    >>> of = allowances(10)
    >>> round(of[1] / of[0], 4)
    1.2662
    """
    if n < 1 or not growth > 1 + first > 1:
        raise ValueError(
            f"allowances: n is at least 1, and growth > 1 + first > 1; got n={n}, growth={growth}, "
            f"first={first}."
        )
    if n == 1:
        return [growth - 1]
    product = lambda factor: math.fsum(math.log1p(first * factor**i) for i in range(n))
    low, high = 0.0, (growth - 1) / first  # the second group alone reaches growth
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if product(middle) < math.log(growth) else (low, middle)
    return [first * low**i for i in range(n)]
