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
    check_allocation,
    check_pattern,
)
from jaxprune.masks import merged
from jaxprune.methods.dynamic import magnitudes
from jaxprune.one_shot import select
from jaxprune.pattern import unstructured
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.schedules import check_sparsities, last_value, sparsity_at


class DpfState(NamedTuple):
    """State of `dpf`: the masks of the network."""

    masks: Masks

    @property
    def ranks_dense_weights(self) -> bool:
        """Pruned weights have values that matter: `sparsify`, which zeroes them, refuses this."""
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

    The gradient passes straight through the masks. Use it with `keep_dense`:

        tx = keep_dense(optax.sgd(0.1, 0.9), every(16, dpf(sparsity)))
        grads = jax.grad(loss)(apply_masks(params, get_masks(opt_state)))

    Its authors update the masks every 16 steps. The masks of a step are made from the weights at
    its start, from the first step on. Until the first update of an `every` they have the sparsity
    of step 0: for a dense start give a schedule.

    Args:
      sparsity: the fraction pruned, in [0, 1), or a schedule of it over steps; an integer is how
        many weights are pruned.
      allocation: how much of each leaf.
      pattern: which entries of a leaf.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the sparsity, or a schedule of it at some step, is outside [0, 1).

    Reference: Lin et al., 2020, Dynamic Model Pruning with Feedback.
    """
    check_allocation(allocation)
    check_pattern(pattern)
    check_sparsities(sparsity)
    last = last_value(sparsity) if callable(sparsity) else None

    def masks(params: Params, step: Any, at_end: Any) -> Masks:
        scores = magnitudes(prunable(params), params)
        return select(scores, allocation, sparsity_at(sparsity, step, at_end), pattern)

    def init(params: Params) -> DpfState:
        chosen = prunable(params)
        check_any(chosen, params)
        check_end(allocation, chosen, last)
        return DpfState(folded(masks(params, jnp.int32(0), at_end=False)))

    def update(
        state: DpfState, params: Params, *, step: Any, at_end: Any = False, **context: Any
    ) -> DpfState:
        return DpfState(merged(state.masks, masks(params, step, at_end)))

    return MaskTransform(init, update)
