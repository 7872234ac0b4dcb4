"""Which neurons are kept: so many, or as many as a budget of weights, FLOPs or time allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.allocation.layerwise import global_threshold
from jaxprune.base import Allocation, Scores, Sparsity, check_fraction, is_known, widened
from jaxprune.coupling.groups import chosen
from jaxprune.coupling.structure import Structure
from jaxprune.structured.budget import within_measured, within_share
from jaxprune.structured.choose import choose


def pick(
    structure: Structure,
    scores: Scores,
    sparsity: Sparsity = None,
    allocation: Allocation = global_threshold,
    *,
    weights: float | None = None,
    flops: float | None = None,
    measure: Callable[[dict[str, np.ndarray]], Any] | None = None,
    at_most: float | None = None,
    round_to: int = 1,
    groups: Sequence[str] | None = None,
) -> dict[str, jax.Array]:
    """The neurons of the highest scores: bool (size,) by group, True = kept.

    Asked for a sparsity it prunes `round(sparsity * neurons)`, exactly; given a budget, as few as
    that allows. The best neuron of each group is always kept. Among equals the lower index is, and
    the earlier group.

        pick(structure, scores, 0.5, groups=["*.heads"])      # half of the attention heads

    Args:
      structure: of `analyze`.
      scores: {group: (size,)}, as `per_group` gives them. Groups score alike only after
        `normalized` or `lamp`.
      sparsity: the fraction of neurons pruned, in [0, 1); may be traced.
      allocation: how many of each group: `global_threshold`, `uniform` (each group alone),
        `isomorphic(structure)` (groups of a kind together), `per_layer({group: sparsity})`, ...
      weights, flops: in place of a sparsity: the fraction of those of the dense network that may
        be left, in (0, 1].
      measure, at_most: in place of a sparsity: `kept -> number`, such as the seconds that
        `compact(structure, params, kept)` takes, and what it may come to, in the same unit. It is
        asked for ever fewer neurons, an eighth at a time, until it fits, then some `log2(neurons)`
        times, and taken not to grow between; what is returned was measured to fit.
      round_to: kept neurons of a group are a multiple of it, rounded down and at least one
        multiple; a group that loses none keeps its size. Counts of neurons are then not exact;
        of a budget, what rounding left over goes to the best multiples that still fit.
      groups: names or globs of the groups that may lose neurons; None for all. A sparsity is that
        of these groups, a budget that of the network; all other groups are kept.

    Raises:
      ValueError: unless just one of sparsity, weights, flops and measure is given, and in its
        range; if scores do not fit the groups, a rule matches no group, or a budget can't be met.
      TypeError: if `groups` is no list of names.
    """
    scores = _checked(structure, scores, round_to, groups)
    asked = {"sparsity": sparsity, "weights": weights, "flops": flops, "measure": measure}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            "pick needs one of sparsity (pruned), weights and flops (left), and measure, as in "
            f"pick(structure, scores, flops=0.5); got {', '.join(given) or 'none of them'}."
        )
    if (measure is None) != (at_most is None):
        raise ValueError(
            "pick: measure and at_most go together, as in measure=seconds, at_most=0.002; got only "
            f"{'at_most' if measure is None else 'measure'}."
        )
    if given == ["sparsity"]:
        return _all(structure, choose(scores, allocation, check_fraction(sparsity), round_to))
    how = structure, scores, allocation
    if measure is not None and at_most is not None:
        found = within_measured(*how, measure, at_most, round_to)
    else:
        budget = asked[given[0]]
        if not is_known(budget) or not 0 < budget <= 1:
            raise ValueError(
                f"{given[0]} is the fraction of the dense network's that may be left, in (0, 1], "
                f"not traced; got {budget}."
            )
        found = within_share(*how, given[0], budget, round_to)
    return _all(structure, found)


def _all(structure: Structure, found: dict[str, Any]) -> dict[str, jax.Array]:
    """What is kept of every group: all neurons of those that were not asked for."""
    every = {name: np.ones(group.size, bool) for name, group in structure.groups.items()}
    return {name: jnp.asarray(own) for name, own in {**every, **found}.items()}


def _checked(
    structure: Structure, scores: Scores, round_to: Any, groups: Sequence[str] | None
) -> Scores:
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
            + (f"wanted {differ}, got {seen}" if differ else "")
            + (f"there is no group {extra}" if extra and not differ else "")
            + "."
        )
    return {name: widened(jnp.asarray(scores[name])) for name in wanted}
