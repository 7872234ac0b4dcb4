"""GraSP: how much of the gradient's norm is lost with each connection, to first order."""

from __future__ import annotations

from jaxprune.analysis.hessian import hvp
from jaxprune.at_init.rounds import Loss, Prunable, check_some, of_prunable, slopes
from jaxprune.base import Params, Scores, widened
from jaxprune.prunable.rules import kernels
from jaxprune.trees import map_scored


def grasp(loss: Loss, params: Params, prunable: Prunable = kernels) -> Scores:
    """GraSP's score w * (H g), like `params`, None where never pruned: higher = keep.

        masks = select(grasp(loss, params), global_threshold, sparsity)

    g and H are the gradient and the Hessian of the loss with respect to the prunable weights. The
    paper's score is -w * (H g), and it removes the *highest*: here the sign is turned, since in
    this library the highest is kept. Without a weight the squared norm of the gradient changes by
    -2 w (H g); the weights that carry it stay.

    Args:
      loss: `params -> scalar`, on a batch that the caller draws, with equally many examples of
        each class (the authors' code takes 25 of each). Their temperature is part of the loss:
        divide the logits by 200. The mean over several batches is
        `analysis.over_batches(loss, batches)`.
      params: the first weights.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the loss returns no scalar, or a weight has no derivative; or, where that is
        known (not under `jit`), if all scores are 0, so that there is nothing to rank by.

    Reference: Wang et al., 2020, Picking Winning Tickets Before Training by Preserving Gradient
    Flow.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'kernel': jnp.array([[2., -1.]])}
    >>> loss = lambda p: (p['kernel'] ** 3).sum() / 3  # H g = 2 w^3
    >>> jp.at_init.grasp(loss, params)['kernel'].tolist()
    [[32.0, 2.0]]
    """
    loss, weights = of_prunable("grasp", loss, params, prunable)
    curved = hvp(loss, weights, slopes(loss, weights))
    scores = map_scored(lambda w, hg: widened(w) * widened(hg), weights, curved)
    check_some("grasp", scores)
    return scores
