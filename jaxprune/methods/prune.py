"""Pruning by score: one-shot with a number, gradual with a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation.by_rule import erk_plus, uniform_plus
from jaxprune.allocation.layerwise import check_end, er, erk, global_threshold, uniform
from jaxprune.base import (
    Allocation,
    Masks,
    MaskState,
    MaskTransform,
    Params,
    Pattern,
    Score,
    Scores,
    check_allocation,
    check_function,
    check_pattern,
    check_score,
    check_sparsity,
    shown,
)
from jaxprune.masks import all_kept, merged, prunable_parts
from jaxprune.methods.combine import once
from jaxprune.one_shot import select
from jaxprune.pattern import unstructured
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.schedules import check_sparsities, last_value, sparsity_at
from jaxprune.scores import fisher, gradient, magnitude, saliency
from jaxprune.selection.deferred import defer
from jaxprune.selection.drop_grow import among
from jaxprune.selection.uncut import elementwise

_SCORES = (magnitude, saliency, gradient, fisher)
_ALLOCATIONS = (uniform, uniform_plus, er, erk, erk_plus, global_threshold)


def prune(
    score: Score,
    allocation: Allocation,
    sparsity: float | optax.Schedule,
    pattern: Pattern = unstructured,
    prunable: Callable[[Params], Params] = kernels,
) -> MaskTransform:
    """Prunes the lowest scores. What is pruned stays pruned, at zero.

        masks = select(score(params), allocation, sparsity(step), pattern)

    With a number it prunes once, at its first update, and freezes the masks. With a schedule it
    prunes at every update: wrap it in `every(n, ...)`. With `magnitude` and the cubic
    `optax.polynomial_schedule(0, final, power=3, transition_steps, transition_begin)` it is gradual
    magnitude pruning.

    Args:
      score: what each weight is worth; see `jaxprune.scores`.
      allocation: how much of each leaf; see `jaxprune.allocation`.
      sparsity: the fraction pruned, in [0, 1), or a function of the step (int32) to it. If a
        schedule falls, the masks stay as they are. An integer is how many weights are pruned.
      pattern: which entries of a leaf; see `jaxprune.pattern`.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the sparsity, or a schedule of it at some step, is outside [0, 1); (in init) if
        nothing is prunable, or the allocation can't mean the last value of the schedule.
      TypeError: if an argument is of the wrong kind.

    Reference: Zhu and Gupta, 2017, To prune, or not to prune: exploring the efficacy of pruning
    for model compression.
    """
    _check_order(score, allocation)
    check_score("prune: score", score)
    check_function("prune: prunable", prunable, ", such as jp.kernels or jp.matching('*/kernel')")
    check_allocation(allocation)
    check_pattern(pattern)
    check_sparsities(sparsity)

    last = last_value(sparsity) if callable(sparsity) else None

    def init(params: Params) -> MaskState:
        chosen = prunable(params)
        check_any(chosen, params)
        if callable(sparsity):
            check_end(allocation, chosen, last)
        else:
            check_sparsity(sparsity, sum(w.size for w in jax.tree.leaves(chosen)))
        return MaskState(folded(all_kept(chosen)))

    def update(
        state: MaskState,
        params: Params,
        *,
        step: Any,
        at_end: Any = False,
        grads: Params = None,
        **context: Any,
    ) -> MaskState:
        parts = prunable_parts(prunable, state.masks, params, grads)

        def scores(masks: Masks, weights: Params, slopes: Params) -> Scores:
            return among(masks, score(weights, grads=slopes, step=step, **context))

        highest = select(
            defer(scores, *parts), allocation, sparsity_at(sparsity, step, at_end), pattern
        )
        # and with the old masks: a falling schedule revives nothing
        masks = elementwise(jnp.logical_and, parts[0], highest)
        return MaskState(merged(state.masks, masks))

    gradual = MaskTransform(init, update)
    return gradual if callable(sparsity) else once(gradual)


def _check_order(score: Any, allocation: Any) -> None:
    """TypeError where one is given in the place of the other: else it fails far from here."""
    if score in _ALLOCATIONS or allocation in _SCORES:
        raise TypeError(
            "prune(score, allocation, sparsity) takes a score, such as jp.magnitude, then an "
            f"allocation, such as jp.erk; got {shown(score)}, then {shown(allocation)}."
        )
