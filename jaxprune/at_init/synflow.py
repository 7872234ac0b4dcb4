"""SynFlow: the share of each weight in all paths through the network; no data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprune.at_init.rounds import Context, Prunable, in_rounds, of_prunable, shrink, slopes
from jaxprune.base import Masks, Params, Scores, is_known, widened
from jaxprune.losses import as_partial
from jaxprune.prunable.rules import kernels
from jaxprune.selection.counting import n_true
from jaxprune.trees import map_scored, present_leaves

Forward = Callable[[Params], Any]


def synflow(
    forward: Forward,
    params: Params,
    sparsity: Any,
    rounds: int = 100,
    prunable: Prunable = kernels,
    *,
    unroll: bool = False,
) -> Masks:
    """Masks of SynFlow: the weights with the largest share in all paths, pruned in rounds.

        R = sum of forward(|w| m),   score = |w| m dR/d|w|,   kept_t = (1 - sparsity)^(t / rounds)

    under one threshold. In a network of ReLUs without biases the scores of each layer sum to R, so
    that no layer is emptied while another has weights to spare. The rounds are one compiled loop
    for every sparsity; under `vmap`, one a seed.

    Scores are the derivative of log R: they are divided by R, and the backward pass of a deep
    network does not overflow. R itself must be finite. For very deep networks in float32 write
    1e-30 * ones for the input, which changes no score; or pass params of float64.

    Args:
      forward: `params -> outputs`, arrays, for one input of ones, in evaluation mode. It receives
        the absolute values of *all* params. Batch norm is linear if its running statistics are
        mean 0 and variance 1, as at initialization (the caller closes over them). Leave out of
        `forward` each norm that divides by its input, such as group or layer norm, or batch norm in
        training mode: its scores would sum to zero.
      params: the first weights.
      sparsity: the fraction pruned, in [0, 1), or, as an integer, how many weights; may be traced.
      rounds: at least 1; the paper takes 100, and with one the network may fall apart.
      prunable: `params -> params` with None in place of what is never pruned.
      unroll: drive the rounds from Python, where convolutions on CPU are slow inside a loop.

    Returns:
      Masks like `params`, bool, None where never pruned.

    Raises:
      ValueError: if the sparsity or the rounds are out of range, or nothing is prunable. Where it
        is known (not under `jit`): if R is not finite, if R falls as some |w| grows, or if no
        weight has a share in a path.

    Warns:
      UserWarning: if a layer is left with no weight, where that is known; see `empty_layers`.

    Reference: Tanaka et al., 2020, Pruning neural networks without any data by iteratively
    conserving synaptic flow.
    """
    context = _of_magnitudes(forward, params, prunable)
    for path, share in present_leaves(_shares(context)):
        # XLA's min on CPU passes over nans
        if is_known(share) and n_true(share >= 0)[0] < share.size:
            raise ValueError(
                f"synflow: the output is not finite, or falls as weights of '{path}' grow. Let "
                "forward take ones and run in evaluation mode, without group or layer norm; if it "
                "overflows, let it take 1e-30 * ones."
            )
    return in_rounds("synflow", shrink, context, sparsity, rounds, unroll)


def flow_shares(forward: Forward, params: Params, prunable: Prunable = kernels) -> Scores:
    """SynFlow's score of one round, divided by R: the share of each weight in all paths.

        |w| / R dR/d|w|,   R = sum of forward(|w|)

    It sums to 1 over each layer that all paths pass through, and is zero where no path is left. For
    the arguments see `synflow`.
    """
    return _shares(_of_magnitudes(forward, params, prunable))


def _shares(context: Context) -> Scores:
    flow, weights = context
    return map_scored(lambda w, s: widened(w) * widened(s), weights, slopes(flow, weights))


def _of_magnitudes(forward: Forward, params: Params, prunable: Prunable) -> Context:
    log_flow = Partial(_log_flow, as_partial(forward))
    return of_prunable("synflow", log_flow, jax.tree.map(jnp.abs, params), prunable)


def _log_flow(forward: Forward, params: Params) -> jax.Array:
    total = sum(jnp.sum(output) for output in jax.tree.leaves(forward(params)))
    # without a path R is 0, and so are its slopes
    return jnp.log(jnp.maximum(total, jnp.finfo(jnp.result_type(total)).tiny))
