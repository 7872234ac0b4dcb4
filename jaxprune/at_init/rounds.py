"""Shared by pruning at initialization: a loss of the prunable weights, and pruning in rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxprune.base import Masks, Params, Scores, check_sparsity, is_count, is_known
from jaxprune.losses import as_partial, check_loss, scan
from jaxprune.masks import all_kept, apply_masks, merged
from jaxprune.one_shot import warn_that_empty
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import check_any
from jaxprune.scores import saliency
from jaxprune.selection.counting import count, numerator
from jaxprune.selection.drop_grow import among
from jaxprune.selection.largest import largest
from jaxprune.trees import present_leaves

Loss = Callable[[Params], jax.Array]
Prunable = Callable[[Params], Params]
Context = tuple[Partial, Params]  # the loss as a function of the prunable leaves, and these
Round = Callable[[Context, Masks, jax.Array], tuple[Masks, None]]


def of_prunable(what: str, loss: Loss, params: Params, prunable: Prunable) -> Context:
    """The loss as a function of the prunable leaves, and these leaves, None where not prunable."""
    check_loss(what, loss, params)
    chosen = prunable(params)
    check_any(chosen, params)
    return Partial(_with_rest, as_partial(loss), params), chosen


def _with_rest(loss: Loss, params: Params, weights: Params) -> jax.Array:
    return loss(merged(params, weights))


@jax.jit
def slopes(loss: Partial, weights: Params) -> Params:
    """dL/dw, compiled once for each loss."""
    return jax.grad(loss)(weights)


def in_rounds(
    what: str, one_round: Round, context: Context, sparsity: Any, rounds: int, unroll: bool
) -> Masks:
    """Masks after these rounds; each keeps fewer weights: see `schedule`.

    Args:
      one_round: `(context, masks, how many to keep) -> (masks, None)`; a function of a module.
      sparsity: a fraction, or a number of weights of all leaves together.
      unroll: drive the rounds from Python.
    """
    if isinstance(rounds, bool) or not hasattr(rounds, "__index__") or rounds < 1:
        raise ValueError(f"{what}: rounds is how many times to prune, at least 1; got {rounds!r}.")
    _, weights = context
    size = sum(w.size for w in jax.tree.leaves(weights))
    check_sparsity(sparsity, size)
    check_some(what, saliency(weights, grads=slopes(*context)))
    counts = schedule(sparsity, rounds, size)
    masks, _ = scan(one_round, context, all_kept(weights), counts, unroll)
    for path, mask in present_leaves(masks):
        if mask.size and is_known(mask) and not mask.any():
            warn_that_empty(path, stacklevel=4)
    return folded(masks)


def check_some(what: str, scores: Scores) -> None:
    """ValueError if all scores are known to be 0: the masks would follow the order of indices."""
    leaves = jax.tree.leaves(scores)
    if is_known(leaves) and not any((score != 0).any() for score in leaves):
        raise ValueError(
            f"{what}: all scores are 0, and would be ranked by the order of their indices: no "
            "weight has an effect on the result. A layer of zeros, or of dead units, cuts every "
            "path, and so does an input of zeros or one that underflows. Draw the weights before, "
            "and mask nothing."
        )


def schedule(sparsity: Any, rounds: int, size: int) -> jax.Array:
    """How many of `size` weights are kept after each round: int32 (rounds,).

        kept_t = size exp(t / rounds ln(1 - sparsity)),   t = 1 ... rounds

    The last one is `size - round(sparsity * size)`, exactly.
    """
    last = count(sparsity, size)
    if isinstance(sparsity, (int, float)):
        left = 1 - (sparsity / size if is_count(sparsity) else sparsity)
        pruned = [count(1 - left ** (t / rounds), size) for t in range(1, rounds)]
        return size - jnp.asarray([*pruned, last], jnp.int32)
    times = jnp.asarray(np.arange(1, rounds) / rounds, jnp.float32)
    n, unit = numerator(jnp.asarray(sparsity), size)  # 1 - 0.999999 in float32 is 1.3 % too much
    density = (unit - n).astype(jnp.float32) / unit
    early = count(-jnp.expm1(times * jnp.log(density)), size)
    return size - jnp.append(jnp.minimum(early, last), last)  # float32 may pass the last by one


def keep(scores: Scores, n: jax.Array) -> Masks:
    """Masks of the n highest scores of all leaves together."""
    leaves, treedef = jax.tree.flatten(scores)
    return jax.tree.unflatten(treedef, largest(leaves, n, together=True))


def shrink(context: Context, masks: Masks, n: jax.Array) -> tuple[Masks, None]:
    """A round that scores |w dL/dw| at the masked weights; what is pruned stays pruned."""
    loss, weights = context
    left = apply_masks(weights, masks)
    return keep(among(masks, saliency(left, grads=jax.grad(loss)(left))), n), None
