"""FORCE and iterative SNIP: the saliency of the pruned network, in rounds."""

from __future__ import annotations

from typing import Any

import jax

from jaxprune.at_init.rounds import Context, Loss, Prunable, in_rounds, keep, of_prunable, shrink
from jaxprune.base import Masks, Params
from jaxprune.masks import apply_masks
from jaxprune.prunable.rules import kernels
from jaxprune.scores import saliency


def force(
    loss: Loss,
    params: Params,
    sparsity: Any,
    rounds: int = 60,
    prunable: Prunable = kernels,
    *,
    unroll: bool = False,
) -> Masks:
    """Masks of FORCE: foresight connection sensitivity, pruned in rounds; weights may return.

        score = |w dL/dw at w * m|,   kept_t = exp(t / rounds ln(1 - sparsity)),   one threshold

    The gradient is taken in the pruned network, with respect to all weights, and w are the weights
    before any pruning: a pruned weight has a score too. The schedule is exponential, its last count
    exact. The rounds are one compiled loop for every sparsity; under `vmap`, one a seed.

    Args:
      loss: `params -> scalar`, on a batch that the caller draws; the mean over several is
        `analysis.over_batches(loss, batches)`. The authors' code draws anew for each round.
      params: the first weights.
      sparsity: the fraction pruned, in [0, 1), or, as an integer, how many weights; may be traced.
      rounds: at least 1; one is SNIP.
      prunable: `params -> params` with None in place of what is never pruned.
      unroll: drive the rounds from Python, where convolutions on CPU are slow inside a loop.

    Returns:
      Masks like `params`, bool, None where never pruned.

    Raises:
      ValueError: if the loss returns no scalar, the sparsity or the rounds are out of range, or
        nothing is prunable; or, where that is known (not under `jit`), if all scores are 0.

    Warns:
      UserWarning: if a layer is left with no weight, where that is known; see `empty_layers`.

    Reference: de Jorge et al., 2021, Progressive Skeletonization: Trimming more fat from a network
    at initialization.
    """
    context = of_prunable("force", loss, params, prunable)
    return in_rounds("force", revive, context, sparsity, rounds, unroll)


def iter_snip(
    loss: Loss,
    params: Params,
    sparsity: Any,
    rounds: int = 60,
    prunable: Prunable = kernels,
    *,
    unroll: bool = False,
) -> Masks:
    """Masks of iterative SNIP: the saliency of the weights left, in rounds; none returns.

        score = |w m dL/dw at w * m|,   kept_t = exp(t / rounds ln(1 - sparsity)),   one threshold

    For the arguments, the errors and the reference see `force`.
    """
    context = of_prunable("iter_snip", loss, params, prunable)
    return in_rounds("iter_snip", shrink, context, sparsity, rounds, unroll)


def revive(context: Context, masks: Masks, n: jax.Array) -> tuple[Masks, None]:
    """A round that scores all weights, by the gradient of the masked network."""
    loss, weights = context
    return keep(saliency(weights, grads=jax.grad(loss)(apply_masks(weights, masks))), n), None
