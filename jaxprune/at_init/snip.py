"""SNIP: how much the loss on a batch changes without each connection, to first order."""

from __future__ import annotations

from jaxprune.at_init.rounds import Loss, Prunable, check_some, of_prunable, slopes
from jaxprune.base import Params, Scores
from jaxprune.prunable.rules import kernels
from jaxprune.scores import saliency


def snip(loss: Loss, params: Params, prunable: Prunable = kernels) -> Scores:
    """|w dL/dw| of a loss on data, like `params`, None where never pruned: one-shot SNIP's score.

        masks = select(snip(loss, params), global_threshold, sparsity)

    It is `saliency` with the gradients of a batch, and |dL/dm| at masks of ones. The paper divides
    by the sum of all scores, which changes no ranking. In a training loop the first step of
    `prune(saliency, global_threshold, sparsity)` does the same on the first batch.

    Args:
      loss: `params -> scalar`, on a batch that the caller draws; the mean over several is
        `analysis.over_batches(loss, batches)`.
      params: the first weights.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the loss returns no scalar; or, where that is known (not under `jit`), if all
        scores are 0, so that there is nothing to rank by.

    Reference: Lee et al., 2019, SNIP: Single-shot Network Pruning based on Connection Sensitivity.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'kernel': jnp.array([[2., -1.], [0.5, 3.]]), 'bias': jnp.zeros(2)}
    >>> jp.at_init.snip(lambda p: (p['kernel'] ** 2).sum() / 2, params)['kernel'].tolist()
    [[4.0, 1.0], [0.25, 9.0]]
    """
    loss, weights = of_prunable("snip", loss, params, prunable)
    scores = saliency(weights, grads=slopes(loss, weights))
    check_some("snip", scores)
    return scores
