"""DPF: dynamic pruning with feedback. Dense weights learn, the network is pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import check_end, global_threshold
from jaxprune.base import (
    Allocation,
    Masks,
    MaskTransform,
    Params,
    Pattern,
    check_fraction,
)
from jaxprune.masks import with_own
from jaxprune.pattern import select, unstructured
from jaxprune.prunable.layers import folded, has_layers, split_like
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.schedules import check_schedule, last_value, sparsity_at
from jaxprune.scores import magnitude
from jaxprune.selection.deferred import defer


class DpfState(NamedTuple):
    """State of `dpf`: the masks of the network."""

    masks: Masks

    @property
    def ranks_dense_weights(self) -> bool:
        """What is not kept has a value that still matters: not for `sparsify`, which zeroes it."""
        return True


def dpf(
    sparsity: float | optax.Schedule,
    allocation: Allocation = global_threshold,
    pattern: Pattern = unstructured,
    prunable: Callable[[Params], Params] = kernels,
) -> MaskTransform:
    """The largest weights make the network, all weights learn: what was pruned can come back.

        masks = select(|params|, allocation, sparsity(step))
        params <- params - rate * gradient at apply_masks(params, masks)

    The gradient passes straight through the masks. With `keep_dense` nothing else is needed:

        tx = keep_dense(optax.sgd(0.1, 0.9), every(16, dpf(sparsity)))
        grads = jax.grad(loss)(apply_masks(params, get_masks(opt_state)))

    Its authors update the masks every 16 steps. The masks of a step are those of the weights that
    it starts with, from the first step on. Before the first update of an `every` they are the first
    ones, at the sparsity of step 0: for a dense start give a schedule.

    Args:
      sparsity: the fraction pruned, in [0, 1), or a schedule of it over steps.
      allocation: how much of each leaf.
      pattern: which entries of a leaf.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the sparsity, or a schedule of it at some step, is outside [0, 1).

    Reference: Lin et al., 2020, Dynamic Model Pruning with Feedback.
    """
    if callable(sparsity):
        check_schedule(sparsity)
    else:
        check_fraction(sparsity)
    last = last_value(sparsity) if callable(sparsity) else None

    def masks(params: Params, step: Any, at_end: Any) -> Masks:
        asked = sparsity_at(sparsity, step, at_end)
        chosen = prunable(params)
        own = split_like(params, chosen, deferred=True)
        scores = defer(magnitude, own) if has_layers(chosen) else magnitude(own)
        return select(scores, allocation, asked, pattern)

    def init(params: Params) -> DpfState:
        chosen = prunable(params)
        check_any(chosen, params)
        check_end(allocation, chosen, last)
        return DpfState(folded(masks(params, jnp.int32(0), at_end=False)))

    def update(
        state: DpfState, params: Params, *, step: Any, at_end: Any = False, **context: Any
    ) -> DpfState:
        return DpfState(with_own(state.masks, masks(params, step, at_end)))

    return MaskTransform(init, update)
