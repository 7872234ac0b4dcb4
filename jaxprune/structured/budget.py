"""As many neurons as a budget allows: of weights, of FLOPs, of anything that can be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxprune.base import Allocation, Scores
from jaxprune.coupling.structure import Structure
from jaxprune.structured.choose import choose, ranked
from jaxprune.structured.cost import counter

Kepts = dict[str, np.ndarray]


def within_share(
    structure: Structure,
    scores: Scores,
    allocation: Allocation,
    what: str,
    budget: float,
    round_to: int,
) -> Kepts:
    """The neurons of which at most the share `budget` of the dense network's `what` is left.

    Args:
      what: a field of `Cost`.
    """
    counted = counter(structure)
    dense = max(getattr(counted({}), what), 1)
    share = lambda kept: getattr(counted(kept), what) / dense

    def cannot(fewest: Kepts) -> str:
        return (
            f"pick: {what}={budget:g} can't be met: with {_units(round_to)} left in each of the "
            f"{len(scores)} groups, {share(fewest):.4g} of the {what} are. "
            + _bound_by(structure, share, fewest)
        )

    return _within(structure, scores, allocation, lambda k: share(k) <= budget, round_to, cannot)


def within_measured(
    structure: Structure,
    scores: Scores,
    allocation: Allocation,
    measure: Callable[[Kepts], Any],
    at_most: float,
    round_to: int,
) -> Kepts:
    """The neurons for which `measure(kept)` came to at most `at_most`, when it was asked."""
    seen: dict[float, Kepts] = {}

    def fits(kept: Kepts) -> bool:
        value = float(measure(kept))
        seen[value] = kept
        return value <= at_most

    def cannot(fewest: Kepts) -> str:
        least = min(seen)
        left = ", ".join(f"{own.sum()} in '{name}'" for name, own in seen[least].items())
        return (
            f"pick: at_most={at_most:g} can't be met: measure gave {least:.4g} at the least, with "
            f"{left}; and was asked down to {_units(round_to)} in each of the "
            f"{len(scores)} groups. Freeze less, or allow more."
        )

    return _within(structure, scores, allocation, fits, round_to, cannot)


def _within(
    structure: Structure,
    scores: Scores,
    allocation: Allocation,
    fits: Callable[[Kepts], bool],
    round_to: int,
    cannot: Callable[[Kepts], str],
) -> Kepts:
    """The fewest neurons pruned that fit: the more are, the less is left."""
    total = sum(own.size for own in scores.values())

    def kept(n: int) -> Kepts:
        found = _of_count(n, scores, allocation, round_to)
        return {name: np.asarray(found[name]) for name in scores}  # jit sorts them

    most = total - len(scores)
    n = _first(lambda n: fits(kept(n)), most)
    if n is None:
        raise ValueError(cannot(kept(most)))
    found = kept(n)
    return _filled(found, scores, round_to, fits) if round_to > 1 else found


@partial(jax.jit, static_argnames=("allocation", "round_to"))
def _of_count(n: Any, scores: Scores, allocation: Allocation, round_to: int) -> Any:
    """`choose` of a count: compiled once for all scores of a structure."""
    return choose(scores, allocation, n / sum(s.size for s in scores.values()), round_to)


def _first(holds: Callable[[int], bool], last: int) -> int | None:
    """The first of 0, ..., last for which it holds, if from there on it does; None if for none.

    It goes up in eighths until it holds, and bisects the last of them: times may rise again where
    next to nothing is left, which is slow at some numbers of channels.
    """
    low = 0
    for high in sorted({last * i // 8 for i in range(9)}):
        if holds(high):
            break
        low = high + 1
    else:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _filled(kept: Kepts, scores: Scores, round_to: int, fits: Callable[[Kepts], bool]) -> Kepts:
    """What rounding down took off too much, a multiple at a time, the best first."""
    order = {name: np.argsort(-np.asarray(ranked(s)), kind="stable") for name, s in scores.items()}

    def ways() -> list[tuple[str, np.ndarray]]:
        """A multiple more of each group, those of the highest scores first."""
        found = []
        for name, own in kept.items():
            n = int(own.sum())
            more = order[name][n : n + round_to]
            if more.size:
                grown = np.isin(np.arange(own.size), order[name][: n + round_to])
                found.append((float(np.mean(scores[name][more])), name, grown))
        return [way[1:] for way in sorted(found, key=lambda way: -way[0])]

    while True:
        grown = next(({**kept, name: own} for name, own in ways() if fits({**kept, name: own})), {})
        if not grown:
            return kept
        kept = grown


def _units(round_to: int) -> str:
    return "one neuron" if round_to == 1 else f"{round_to} neurons"


def _bound_by(
    structure: Structure, share: Callable[[Mapping[str, Any]], float], fewest: Kepts
) -> str:
    """Which groups hold what is left, and what would be left without any of them."""
    hangs = {
        name: share(fewest) - share({**fewest, name: np.zeros_like(own)})
        for name, own in fewest.items()
    }
    most = sorted(hangs, key=lambda name: -hangs[name])[:3]
    groups = ", ".join(f"{hangs[name]:.2g} on '{name}'" for name in most)
    without = share({name: np.zeros_like(own) for name, own in fewest.items()})
    frozen = "; ".join(
        f"{why}: {', '.join(map(str, members[:3]))}"
        for why, members in list(structure.frozen.items())[:4]
    )
    return (
        f"Of these hang {groups}, and {without:.2g} on no group. Collapse groups, freeze less, or "
        f"ask for more; frozen are {frozen}."
    )
