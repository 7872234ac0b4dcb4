"""DPF: dynamic pruning with feedback. Dense weights learn, the network is pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from jaxprune.allocation import global_threshold
from jaxprune.base import (
    Allocation,
    Masks,
    MaskTransform,
    Params,
    Pattern,
    check_schedule,
    check_sparsity,
    value_at,
)
from jaxprune.masks import all_kept, with_own
from jaxprune.pattern import select, unstructured
from jaxprune.rules import check_any, kernels
from jaxprune.scores import magnitude


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

    The gradient passes straight through the masks. With `track_masks` nothing else is needed:

        tx = optax.chain(track_masks(every(16, dpf(sparsity))), optax.sgd(0.1, 0.9))
        grads = jax.grad(loss)(apply_masks(params, get_masks(opt_state)))

    Args:
      sparsity: the fraction pruned, in [0, 1), or a schedule of it over steps.
      allocation: how much of each leaf.
      pattern: which entries of a leaf.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the sparsity, or either end of its schedule, is outside [0, 1).

    Reference: Lin et al., 2020, Dynamic Model Pruning with Feedback.
    """
    if callable(sparsity):
        check_schedule(sparsity)
    else:
        check_sparsity(sparsity)

    def init(params: Params) -> DpfState:
        chosen = prunable(params)
        check_any(chosen, params)
        return DpfState(all_kept(chosen))

    def update(
        state: DpfState, params: Params, *, step: Any, at_end: Any = False, **context: Any
    ) -> DpfState:
        asked = value_at(sparsity, step, at_end)
        new = select(magnitude(prunable(params)), allocation, asked, pattern)
        return DpfState(with_own(state.masks, new))

    return MaskTransform(init, update)
