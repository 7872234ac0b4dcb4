"""The two parts of a method of dynamic sparse training: a random start, drop-and-grow updates.

The number of weights that each leaf keeps never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax

from jaxprune.base import (
    Allocation,
    Masks,
    MaskState,
    Params,
    Score,
    Scores,
    Sparsities,
    check_allocation,
    check_sparsity,
    is_known,
)
from jaxprune.masks import merged, prunable_parts
from jaxprune.one_shot import select
from jaxprune.prunable.layers import folded, has_layers, split_like
from jaxprune.prunable.rules import check_any
from jaxprune.schedules import fraction_at, wrong_values
from jaxprune.scores import magnitude, random
from jaxprune.selection.counting import count
from jaxprune.selection.deferred import defer
from jaxprune.selection.drop_grow import counts, drop, grow
from jaxprune.selection.uncut import counts_of
from jaxprune.sharding import sharded_like
from jaxprune.trees import map_scored, present_leaves

Prunable = Callable[[Params], Params]
Drop = Callable[[Masks, Params, Any], Masks]  # (masks, params, fraction) -> fewer masks
Update = Callable[..., Any]  # that of a MaskTransform


def smallest(masks: Masks, params: Params, fraction: Any, up: bool = False) -> Masks:
    """Drops the fraction of each leaf's kept weights that is smallest; `up` rounds their number."""
    return drop(masks, defer(magnitude, params), counts(masks, fraction, up))


def magnitudes(chosen: Params, params: Params) -> Scores:
    """|w| of the chosen leaves; the layers of a stack are not copied out of it."""
    weights = split_like(params, chosen, deferred=True)
    return defer(magnitude, weights) if has_layers(chosen) else magnitude(weights)


def random_start(
    key: jax.Array, sparsity: float, allocation: Allocation, prunable: Prunable
) -> Callable[[Params], MaskState]:
    """The `init` of a method that is sparse from its first step: random masks, counts exact.

    Raises:
      ValueError: if the sparsity is outside [0, 1); (in init) if a leaf would keep no weight,
        where that is known: it could never grow one.
    """
    score = random(key)
    check_sparsity(sparsity)
    check_allocation(allocation)

    def init(params: Params) -> MaskState:
        chosen = prunable(params)
        check_any(chosen, params)
        scores = score(chosen)
        check_sparsity(sparsity, sum(x.size for x in jax.tree.leaves(scores)))
        sparsities = allocation(scores, sparsity)
        _check_none_empty(scores, sparsities)
        masks = select(scores, lambda *_: sparsities, sparsity)
        return MaskState(folded(map_scored(sharded_like, masks, chosen)))

    return init


def regrow(
    dropped: Drop, promise: Score, fraction: float | optax.Schedule, prunable: Prunable
) -> Update:
    """The `update` of a method: drops with `dropped`, grows as many where `promise` is highest.

    A dropped weight may grow again in the same update. Then it keeps its value and its moments; a
    new weight starts at zero.

    Args:
      dropped: a function such as `smallest`.
      promise: the score by which weights grow, such as `gradient`.
      fraction: of each leaf's kept weights, in [0, 1], or a schedule of it over steps.

    Raises:
      ValueError: if the fraction, or either end of its schedule, is outside [0, 1].
    """
    schedule = _checked(fraction)

    def update(
        state: Any,
        params: Params,
        *,
        step: Any,
        at_end: Any = False,
        grads: Params = None,
        **context: Any,
    ) -> Any:
        masks, weights, slopes = prunable_parts(prunable, state.masks, params, grads)
        left = dropped(masks, weights, fraction_at(schedule, step, at_end))

        def promised(weights: Params, slopes: Params) -> Scores:
            return promise(weights, grads=slopes, step=step, **context)

        is_gone = defer(partial(map_scored, lambda old, new: old & ~new), masks, left)
        new = grow(left, defer(promised, weights, slopes), counts_of(is_gone))
        return state._replace(masks=merged(state.masks, new))

    return update


def _checked(fraction: float | optax.Schedule) -> Callable[[Any], Any]:
    """`fraction` as a function of the step; ValueError if it is known to be outside [0, 1]."""
    schedule = fraction if callable(fraction) else optax.constant_schedule(fraction)
    for when, value in wrong_values(schedule, lambda s: (s >= 0) & (s <= 1)):
        raise ValueError(
            f"the drop fraction {when if callable(fraction) else 'is'} {value}; an update drops "
            "and grows this fraction of the kept weights, in [0, 1]: a number such as 0.3, or a "
            "schedule such as optax.cosine_decay_schedule(0.3, steps)."
        )
    return schedule


def _check_none_empty(scores: Scores, sparsities: Sparsities) -> None:
    pairs = zip(present_leaves(scores), jax.tree.leaves(sparsities), strict=True)
    for (path, leaf), sparsity in pairs:
        if leaf.size and is_known(sparsity) and count(sparsity, leaf.size) >= leaf.size:
            raise ValueError(
                f"'{path}' would keep 0 of its {leaf.size:,} weights, and could never grow one. "
                "Lower the sparsity, choose another allocation (erk keeps more of small layers), "
                "or exempt it with per_layer or prunable=..."
            )
