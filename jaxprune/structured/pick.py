"""Which neurons are kept: a number, or as many as a budget of costs or time allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.allocation.layerwise import global_threshold
from jaxprune.base import Allocation, Scores, Sparsity, check_sparsity, is_known, widened
from jaxprune.coupling.groups import chosen
from jaxprune.coupling.structure import Structure
from jaxprune.programs.bops import Bits
from jaxprune.programs.flops import check_sizes
from jaxprune.selection.counting import count
from jaxprune.selection.largest import largest
from jaxprune.structured.bisection import first
from jaxprune.structured.bops import bops as bops_of
from jaxprune.structured.cost import counter
from jaxprune.structured.kept import Removal

Neurons = dict[str, np.ndarray]  # bool (size,) by group


def pick(
    structure: Structure,
    scores: Scores,
    sparsity: Sparsity = None,
    allocation: Allocation = global_threshold,
    *,
    weights: float | None = None,
    flops: float | None = None,
    bops: float | None = None,
    bits: Bits = None,
    measure: Callable[[dict[str, np.ndarray]], Any] | None = None,
    at_most: float | None = None,
    round_to: int = 1,
    groups: Sequence[str] | None = None,
) -> dict[str, jax.Array]:
    """The neurons of the highest scores: bool (size,) by group, True = kept.

    With a sparsity it prunes `round(sparsity * neurons)`, exactly; with a budget, as few as the
    budget allows. The best neuron of each group is always kept. Among equals it keeps the lower
    index, and the earlier group.

        pick(structure, scores, 0.5, groups=["*.heads"])      # half of the attention heads

    Args:
      structure: of `analyze`.
      scores: {group: (size,)}, as `per_group` gives them. Groups score alike only after
        `normalized` or `lamp`.
      sparsity: the fraction of neurons pruned, in [0, 1), or, as an integer, how many; may be
        traced.
      allocation: how many of each group: `global_threshold`, `uniform` (each group alone),
        `isomorphic(structure)` (groups of a kind together), `per_layer({group: sparsity})`, ...
      weights, flops: in place of a sparsity: the fraction of the dense network's weights or FLOPs
        that may be left, in (0, 1].
      bops, bits: in place of a sparsity: the fraction of the dense network's bit operations that
        may be left, in (0, 1], with weights and inputs of so many `bits` (`structured.bops`).
      measure, at_most: in place of a sparsity: `kept -> number`, such as the seconds that
        `compact(structure, params, kept)` takes, and the most that it may be, in the same unit.
        `measure` is called about 8 + log2(neurons) times; it must not increase as neurons are
        removed. The neurons that are returned were measured.
      round_to: the neurons kept of a group are a multiple of it, rounded down and at least one
        multiple; a group that loses none keeps its size. Counts of neurons are then not exact;
        where rounding leaves a part of a budget, the best multiples that still fit are kept too.
      groups: names or globs of the groups that may lose neurons; None for all. A sparsity counts
        the neurons of these groups, a budget counts the network; all other groups are kept.

    Raises:
      ValueError: unless just one of sparsity, weights, flops, bops and measure is given, and in its
        range; if bops and bits do not come together, or bits are out of range; if scores do not
        fit the groups, a rule matches no group, or a budget can't be met.
      TypeError: if `groups` is no list of names, or bits are no integers.
    """
    scores = checked(structure, scores, round_to, groups)
    asked = {"sparsity": sparsity, "weights": weights, "flops": flops, "bops": bops}
    asked["measure"] = measure
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            "pick needs one of sparsity (pruned), weights, flops and bops (left), and measure, as "
            f"in pick(structure, scores, flops=0.5); got {', '.join(given) or 'none of them'}."
        )
    if (measure is None) != (at_most is None):
        raise ValueError(
            "pick: measure and at_most go together, as in measure=seconds, at_most=0.002; got only "
            f"{'at_most' if measure is None else 'measure'}."
        )
    if (bops is None) != (bits is None):
        raise ValueError(
            "pick: bops and bits go together, as in bops=0.25, bits=(4, 8), which are those of "
            f"weights and of inputs; got only {'bits' if bops is None else 'bops'}."
        )
    neurons: dict[str, Any]
    if given == ["sparsity"]:
        check_sparsity(sparsity, sum(s.size for s in scores.values()), "neurons")
        neurons = choose(scores, allocation, sparsity, round_to)
    elif measure is not None and at_most is not None:
        neurons = _within_measured(scores, allocation, measure, at_most, round_to)
    else:
        budget = asked[given[0]]
        if not is_known(budget) or not 0 < budget <= 1:
            raise ValueError(
                f"{given[0]} is the fraction of the dense network's that may be left, in (0, 1], "
                f"not traced; got {budget}."
            )
        check_sizes(f"pick(..., {given[0]}={budget})", structure.inputs)
        costs = counter(structure)
        left = lambda neurons: (
            getattr(costs(neurons), given[0])
            if bops is None
            else bops_of(structure, Removal(neurons, ()), bits=bits)
        )
        neurons = _within_share(structure, scores, allocation, given[0], left, budget, round_to)
    every = {name: np.ones(group.size, bool) for name, group in structure.groups.items()}
    return {name: jnp.asarray(mask) for name, mask in {**every, **neurons}.items()}


def choose(
    scores: Scores, allocation: Allocation, sparsity: Sparsity, round_to: int = 1
) -> dict[str, jax.Array]:
    """The highest scores of each group, at least one of each; jit-able, nothing is checked."""
    # the best of its group does not compete
    best = {name: jnp.arange(s.size) == jnp.argmax(_ranked(s)) for name, s in scores.items()}
    safe = {name: jnp.where(best[name], jnp.inf, s) for name, s in scores.items()}
    pruned = allocation(safe, sparsity)
    n_kept = []
    for name, s in safe.items():
        n = s.size - jnp.asarray(count(pruned[name], s.size), jnp.int32)
        if round_to > 1:
            n = jnp.where(n == s.size, n, jnp.maximum(n // round_to * round_to, round_to))
        n_kept.append(jnp.clip(n, 1, s.size))
    return dict(zip(safe, largest(list(safe.values()), jnp.stack(n_kept)), strict=True))


def _ranked(s: jax.Array) -> jax.Array:
    """Scores with nan, which is kept and seen, above all."""
    return jnp.where(jnp.isnan(s), jnp.inf, s)


def checked(
    structure: Structure, scores: Scores, round_to: Any, groups: Sequence[str] | None
) -> Scores:
    """The scores of the groups that may lose neurons, in float32 or wider."""
    if not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"pick: round_to is an integer of at least 1; got {round_to!r}.")
    if not structure.groups:
        raise ValueError(
            "pick: there is no group to pick from; print the structure to see what freezes them."
        )
    names = structure.groups if groups is None else chosen(groups, structure.groups)
    wanted = {name: (structure.groups[name].size,) for name in names}
    if not isinstance(scores, dict):
        made = " Call it on the params: it makes scores." if callable(scores) else ""
        raise TypeError(
            "pick: scores are {group: (size,)}, such as per_group(structure)(params); got a "
            f"{type(scores).__name__}.{made}"
        )
    got = {name: np.shape(s) for name, s in scores.items()}
    differ = {n: shape for n, shape in wanted.items() if got.get(n) != shape}
    extra = [name for name in got if name not in structure.groups]
    if differ or extra:
        seen = {n: got.get(n, "nothing") for n in differ}
        raise ValueError(
            "pick: scores are {group: (size,)}, such as per_group(structure)(params); "
            + (f"wanted {differ}, got {seen}." if differ else f"there is no group {extra}.")
        )
    return {name: widened(jnp.asarray(scores[name])) for name in wanted}


# --- budgets --------------------------------------------------------------------------------------


def _within_share(
    structure: Structure,
    scores: Scores,
    allocation: Allocation,
    what: str,
    count: Callable[[Neurons], float],
    budget: float,
    round_to: int,
) -> Neurons:
    """The neurons with which at most the share `budget` of the dense network's `what` is left.

    Args:
      what: the name of the budget.
      count: `neurons -> cost`; a group may have no neuron.
    """
    dense = max(count({}), 1)
    share = lambda neurons: count(neurons) / dense

    def cannot(fewest: Neurons) -> str:
        without = lambda names: share({n: m & (n not in names) for n, m in fewest.items()})
        hangs = {name: share(fewest) - without([name]) for name in fewest}
        most = sorted(hangs, key=lambda name: -hangs[name])[:3]
        frozen = "; ".join(
            f"{why}: {', '.join(map(str, members[:3]))}"
            for why, members in list(structure.frozen.items())[:4]
        )
        return (
            f"pick: {what}={budget:g} can't be met: with {_units(round_to)} left in each of the "
            f"{len(scores)} groups, {share(fewest):.4g} of the {what} are. Of these hang "
            f"{', '.join(f'{hangs[name]:.2g} on {name!r}' for name in most)}, and "
            f"{without(fewest):.2g} on no group. Collapse groups, freeze less, or ask for more; "
            f"frozen are {frozen}."
        )

    return _within(scores, allocation, lambda n: share(n) <= budget, round_to, cannot)


def _within_measured(
    scores: Scores,
    allocation: Allocation,
    measure: Callable[[Neurons], Any],
    at_most: float,
    round_to: int,
) -> Neurons:
    """The neurons for which `measure` was called, and returned at most `at_most`."""
    seen: dict[float, Neurons] = {}

    def fits(neurons: Neurons) -> bool:
        value = float(measure(neurons))
        seen[value] = neurons
        return value <= at_most

    def cannot(_: Neurons) -> str:
        least = min(seen)
        left = ", ".join(f"{mask.sum()} in '{name}'" for name, mask in seen[least].items())
        return (
            f"pick: at_most={at_most:g} can't be met: measure gave {least:.4g} at the least, with "
            f"{left}; and was asked down to {_units(round_to)} in each of the "
            f"{len(scores)} groups. Freeze less, or allow more."
        )

    return _within(scores, allocation, fits, round_to, cannot)


def _within(
    scores: Scores,
    allocation: Allocation,
    fits: Callable[[Neurons], bool],
    round_to: int,
    cannot: Callable[[Neurons], str],
) -> Neurons:
    """The fewest neurons pruned that fit: the more are pruned, the less is left."""

    def left(n: int) -> Neurons:
        masks = _without(n, scores, allocation, round_to)
        return {name: np.asarray(masks[name]) for name in scores}  # jit sorts them

    most = sum(s.size for s in scores.values()) - len(scores)
    n = first(lambda n: fits(left(n)), most)
    if n is None:
        raise ValueError(cannot(left(most)))
    return _filled(left(n), scores, round_to, fits) if round_to > 1 else left(n)


@partial(jax.jit, static_argnames=("allocation", "round_to"))
def _without(n: Any, scores: Scores, allocation: Allocation, round_to: int) -> Any:
    """`choose`, `n` neurons pruned: compiled once for all scores of a structure."""
    return choose(scores, allocation, n / sum(s.size for s in scores.values()), round_to)


def _filled(
    neurons: Neurons, scores: Scores, round_to: int, fits: Callable[[Neurons], bool]
) -> Neurons:
    """What rounding down took off too much is kept again, a multiple at a time, the best first."""
    order = {name: np.argsort(-np.asarray(_ranked(s)), kind="stable") for name, s in scores.items()}

    def ways() -> list[tuple[str, np.ndarray]]:
        """A multiple more of each group, the highest scores first."""
        grown = []
        for name, mask in neurons.items():
            n = int(mask.sum())
            more = order[name][n : n + round_to]
            if more.size:
                larger = np.isin(np.arange(mask.size), order[name][: n + round_to])
                grown.append((float(np.mean(scores[name][more])), name, larger))
        return [way[1:] for way in sorted(grown, key=lambda way: -way[0])]

    while True:
        larger = ({**neurons, name: mask} for name, mask in ways())
        fitting = next(filter(fits, larger), None)
        if fitting is None:
            return neurons
        neurons = fitting


def _units(round_to: int) -> str:
    return "one neuron" if round_to == 1 else f"{round_to} neurons"
