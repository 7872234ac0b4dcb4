"""Pruning by score: one-shot with a number, gradual with a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import (
    check_end,
    er,
    erk,
    erk_plus,
    global_threshold,
    uniform,
    uniform_plus,
)
from jaxprune.base import (
    Allocation,
    Masks,
    MaskState,
    MaskTransform,
    Params,
    Pattern,
    Score,
    check_sparsity,
    shown,
)
from jaxprune.masks import all_kept, own_masks, with_own
from jaxprune.methods.combine import once
from jaxprune.pattern import check_callables, select, unstructured
from jaxprune.prunable.layers import folded, split_like
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.schedules import check_schedule, last_value, sparsity_at
from jaxprune.scores import fisher, gradient, lamp, magnitude, random, saliency
from jaxprune.selection.deferred import defer
from jaxprune.selection.drop_grow import among
from jaxprune.uncut import elementwise

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
    prunes at every update that it is asked for: wrap it in `every(n, ...)`. With `magnitude` and
    the cubic `optax.polynomial_schedule(0, final, power=3, transition_steps, transition_begin)`
    it is gradual magnitude pruning.

    Args:
      score: what each weight is worth; see `jaxprune.scores`.
      allocation: how much of each leaf; see `jaxprune.allocation`.
      sparsity: the fraction pruned, in [0, 1), or a function of the step (int32) to it. Should a
        schedule fall, the masks stay as they are. An integer is how many weights are pruned.
      pattern: which entries of a leaf; see `jaxprune.pattern`.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the sparsity, or a schedule of it at some step, is outside [0, 1); (in init) if
        nothing is prunable, or the allocation can't mean what the schedule ends at.
      TypeError: if an argument is of the wrong kind.

    Reference: Zhu and Gupta, 2017, To prune, or not to prune: exploring the efficacy of pruning
    for model compression.
    """
    _check_functions(score, prunable)
    _check_order(score, allocation)
    check_callables(allocation, pattern)
    if callable(sparsity):
        check_schedule(sparsity)
    else:
        check_sparsity(sparsity)

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
        masks = own_masks(state.masks, params, prunable)

        # layers stay in their stacks: a copy of these would be a copy of the model
        own = split_like(params, masks, deferred=True)
        slopes = None if grads is None else split_like(grads, masks, deferred=True)

        def scores(own: Params, slopes: Params, masks: Masks) -> Any:
            return among(masks, score(own, grads=slopes, step=step, **context))

        asked = sparsity_at(sparsity, step, at_end)
        kept = select(defer(scores, own, slopes, masks), allocation, asked, pattern)
        # with what is kept already: a falling schedule revives nothing
        return MaskState(with_own(state.masks, elementwise(jnp.logical_and, masks, kept)))

    gradual = MaskTransform(init, update)
    return gradual if callable(sparsity) else once(gradual)


def _check_functions(score: Any, prunable: Any) -> None:
    example_of = {random: "jp.random(key)", lamp: "jp.lamp()"}
    for argument, value, example in (
        ("score", score, "jp.magnitude, jp.random(key) or jp.lamp()"),
        ("prunable", prunable, "jp.kernels or jp.matching('*/kernel')"),
    ):
        if not callable(value):
            raise TypeError(
                f"prune: {argument} is a function, such as {example}; got {shown(value)}."
            )
    if any(score is maker for maker in example_of):
        raise TypeError(
            f"prune: {score.__name__} makes a score: call it, as in {example_of[score]}."
        )


def _check_order(score: Any, allocation: Any) -> None:
    """TypeError where one is given in the place of the other: else it fails far from here."""
    if score in _ALLOCATIONS or allocation in _SCORES:
        raise TypeError(
            "prune(score, allocation, sparsity) takes a score, such as jp.magnitude, then an "
            f"allocation, such as jp.erk; got {shown(score)}, then {shown(allocation)}."
        )
