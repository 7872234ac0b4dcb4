"""Static sparse training: random masks, drawn before the first step, that never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxprune.allocation.layerwise import erk
from jaxprune.base import Allocation, MaskState, MaskTransform, Params
from jaxprune.keys import key_first
from jaxprune.methods.combine import never_due
from jaxprune.methods.dynamic import random_start
from jaxprune.prunable.rules import kernels


@key_first
def static(
    key: jax.Array,
    sparsity: float,
    allocation: Allocation = erk,
    prunable: Callable[[Params], Params] = kernels,
) -> MaskTransform:
    """Random pruning at initialization: masks are drawn once, by layer, and never change.

    Mask the weights before the first forward pass, so that it is sparse too:

        params = apply_masks(params, get_masks(opt_state))

    Args:
      key: a key of `jax.random`; under `vmap`, one a seed.
      sparsity: the fraction pruned, in [0, 1); an integer is how many weights.
      allocation: how much of each leaf: `erk`, `uniform`, `allocation.erk_plus(...)`, or the
        ratios of another score, `allocation.like(scores)`.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the sparsity is outside [0, 1); (in init) if a leaf would keep no weight.

    Reference: Liu et al., 2022, The Unreasonable Effectiveness of Random Pruning: Return of the
    Most Naive Baseline for Sparse Training.
    """

    def update(state: MaskState, params: Params, **context: Any) -> MaskState:
        return state

    return MaskTransform(random_start(key, sparsity, allocation, prunable), update, never_due)
