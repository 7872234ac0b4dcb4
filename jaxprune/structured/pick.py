"""Which neurons are kept: so many, or as many as a budget of weights or FLOPs allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.allocation import global_threshold
from jaxprune.base import Allocation, Scores, Sparsity, check_sparsity
from jaxprune.counting import count
from jaxprune.coupling.structure import Structure
from jaxprune.selection import largest
from jaxprune.structured.cost import counter


def pick(
    structure: Structure,
    scores: Scores,
    sparsity: Sparsity = None,
    allocation: Allocation = global_threshold,
    *,
    weights: float | None = None,
    flops: float | None = None,
    round_to: int = 1,
) -> dict[str, jax.Array]:
    """The neurons of the highest scores: bool (size,) by group, True = kept.

    Asked for a sparsity it prunes `round(sparsity * neurons)`, exactly; asked for weights or FLOPs
    as few as the budget allows. The best neuron of each group is always kept. Among equals the
    lower index is, and the earlier group.

    Args:
      structure: of `analyze`.
      scores: {group: (size,)}, as `per_group` gives them. Groups score alike only after
        `normalised` or `lamp`.
      sparsity: the fraction of neurons pruned, in [0, 1); may be traced.
      allocation: how many of each group: `global_threshold`, `uniform` (each group alone),
        `per_layer({group: sparsity})`, ...
      weights, flops: in place of a sparsity: the fraction of those of the dense network that may
        be left, in (0, 1].
      round_to: kept neurons of a group are a multiple of it, rounded down and at least one
        multiple; a group that loses none keeps its size. Counts of neurons are then not exact;
        of a budget, what rounding left over goes to the best multiples that still fit.

    Raises:
      ValueError: unless just one of sparsity, weights and flops is given, and in its range; if
        scores do not fit the groups, or a budget can't be met.
    """
    scores = _checked(structure, scores, round_to)
    asked = {"sparsity": sparsity, "weights": weights, "flops": flops}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            "pick needs one of sparsity (pruned), weights and flops (left), as in "
            f"pick(structure, scores, flops=0.5); got {', '.join(given) or 'none of them'}."
        )
    if given == ["sparsity"]:
        return choose(scores, allocation, check_sparsity(sparsity), round_to)
    budget = asked[given[0]]
    if isinstance(budget, jax.core.Tracer) or not 0 < budget <= 1:
        raise ValueError(
            f"{given[0]} is the fraction of the dense network's that may be left, in (0, 1], not "
            f"traced; got {budget}."
        )
    return _within(structure, scores, allocation, given[0], budget, round_to)


def choose(
    scores: Scores, allocation: Allocation, sparsity: Sparsity, round_to: int = 1
) -> dict[str, jax.Array]:
    """The highest scores of each group, at least one of each; jit-able, nothing is checked."""
    # what scores most in its group is out of the competition
    best = {name: jnp.arange(s.size) == jnp.argmax(_ranked(s)) for name, s in scores.items()}
    safe = {name: jnp.where(best[name], jnp.inf, s) for name, s in scores.items()}
    pruned = allocation(safe, sparsity)
    kept = {}
    for name, s in safe.items():
        n = s.size - jnp.asarray(count(pruned[name], s.size), jnp.int32)
        if round_to > 1:
            n = jnp.where(n == s.size, n, jnp.maximum(n // round_to * round_to, round_to))
        kept[name] = jnp.clip(n, 1, s.size)
    masks = largest(list(safe.values()), jnp.stack([kept[name] for name in safe]))
    return dict(zip(safe, masks, strict=True))


def _ranked(s: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(s), jnp.inf, s)


def _checked(structure: Structure, scores: Scores, round_to: Any) -> Scores:
    if not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"pick: round_to is an integer of at least 1; got {round_to!r}.")
    if not structure.groups:
        raise ValueError(
            "pick: there is no group to pick from; print the structure to see what freezes them."
        )
    wanted = {name: (group.size,) for name, group in structure.groups.items()}
    got = {name: np.shape(s) for name, s in scores.items()} if isinstance(scores, dict) else {}
    if got != wanted:
        differ = {n: s for n, s in wanted.items() if got.get(n) != s}
        extra = [name for name in got if name not in wanted]
        raise ValueError(
            "pick: scores are {group: (size,)}, such as per_group(structure)(params); "
            + (f"wanted {differ}, got { ({n: got.get(n) for n in differ}) }" if differ else "")
            + (f"there is no group {extra}" if extra and not differ else "")
            + "."
        )
    return {name: jnp.asarray(scores[name], jnp.float32) for name in wanted}


def _within(
    structure: Structure,
    scores: Scores,
    allocation: Allocation,
    what: str,
    budget: float,
    round_to: int,
) -> dict[str, jax.Array]:
    """By bisection on the number of neurons pruned: the more are, the less is left."""
    counted = counter(structure)
    dense = getattr(counted({}), what)
    total = sum(group.size for group in structure.groups.values())
    at = jax.jit(lambda n: choose(scores, allocation, n / total, round_to))

    def kept(n: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(own) for name, own in at(n).items()}

    def share(kept: Mapping[str, Any]) -> float:
        return getattr(counted(kept), what) / max(dense, 1)

    fits = lambda kept: share(kept) <= budget
    most = total - len(structure.groups)
    if not fits(kept(most)):
        raise ValueError(_cannot(structure, what, budget, share(kept(most)), round_to))
    found = kept(_first(lambda n: fits(kept(n)), most))
    if round_to > 1:
        found = _filled(found, scores, round_to, fits)
    return {name: jnp.asarray(own) for name, own in found.items()}


def _filled(
    kept: dict[str, np.ndarray],
    scores: Scores,
    round_to: int,
    fits: Callable[[Mapping[str, Any]], bool],
) -> dict[str, np.ndarray]:
    """What rounding down took off too much, a multiple at a time, the best first."""
    order = {name: np.argsort(-np.asarray(_ranked(s)), kind="stable") for name, s in scores.items()}
    while True:
        ways = []
        for name, own in kept.items():
            n = int(own.sum())
            more = order[name][n : n + round_to]
            if more.size:
                grown = np.isin(np.arange(own.size), order[name][: n + round_to])
                ways.append((float(np.mean(scores[name][more])), name, grown))
        ways = [way for way in ways if fits({**kept, way[1]: way[2]})]
        if not ways:
            return kept
        _, name, grown = max(ways, key=lambda way: way[0])
        kept = {**kept, name: grown}


def _first(holds: Callable[[int], bool], last: int) -> int:
    """The first of 0, ..., last for which it holds, if from there on it does."""
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _cannot(structure: Structure, what: str, budget: float, left: float, round_to: int) -> str:
    unit = "one neuron" if round_to == 1 else f"{round_to} neurons"
    frozen = "; ".join(
        f"{why}: {', '.join(map(str, members[:3]))}"
        for why, members in list(structure.frozen.items())[:4]
    )
    return (
        f"pick: {what}={budget:g} can't be met: with {unit} left in each of the "
        f"{len(structure.groups)} groups, {left:.4g} of the {what} are. What is frozen bounds it: "
        f"{frozen}."
    )
