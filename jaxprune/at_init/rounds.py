"""What pruning at initialization shares: a loss of the prunable weights, and pruning in rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxprune.base import Masks, Params, Scores, check_fraction, is_known
from jaxprune.losses import as_partial, check_loss, scan
from jaxprune.masks import all_kept, apply_masks, with_own
from jaxprune.pattern import warn_that_empty
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import check_any
from jaxprune.scores import saliency
from jaxprune.selection.counting import count
from jaxprune.selection.drop_grow import among
from jaxprune.selection.largest import largest
from jaxprune.trees import named_leaves

Loss = Callable[[Params], jax.Array]
Prunable = Callable[[Params], Params]
Context = tuple[Partial, Params]  # the loss as a function of the prunable leaves, and these
Round = Callable[[Context, Masks, jax.Array], tuple[Masks, None]]


def of_prunable(what: str, loss: Loss, params: Params, prunable: Prunable) -> Context:
    """The loss as a function of the prunable leaves alone, and these, None where there is none."""
    check_loss(what, loss, params)
    own = prunable(params)
    check_any(own, params)
    return Partial(_with_own, as_partial(loss), params), own


def _with_own(loss: Loss, params: Params, own: Params) -> jax.Array:
    return loss(with_own(params, own))


@jax.jit
def slopes(loss: Partial, own: Params) -> Params:
    """dL/dw, compiled once for each loss."""
    return jax.grad(loss)(own)


def in_rounds(
    what: str, one_round: Round, context: Context, sparsity: Any, rounds: int, unroll: bool
) -> Masks:
    """Masks after so many rounds, of which each keeps fewer weights: see `schedule`.

    Args:
      one_round: `(context, masks, how many to keep) -> (masks, None)`; a function of a module.
      unroll: drive the rounds from Python.
    """
    if isinstance(rounds, bool) or not hasattr(rounds, "__index__") or rounds < 1:
        raise ValueError(f"{what}: rounds is how many times to prune, at least 1; got {rounds!r}.")
    check_fraction(sparsity)
    _, own = context
    check_some(what, saliency(own, grads=slopes(*context)))
    kept = schedule(sparsity, rounds, sum(w.size for w in jax.tree.leaves(own)))
    masks, _ = scan(one_round, context, all_kept(own), kept, unroll)
    for path, mask in named_leaves(masks):
        if mask is not None and mask.size and is_known(mask) and not mask.any():
            warn_that_empty(path, stacklevel=4)
    return folded(masks)


def check_some(what: str, scores: Scores) -> None:
    """ValueError where all scores are known to be 0: masks would follow the order of indices."""
    leaves = jax.tree.leaves(scores)
    if is_known(leaves) and not any((score != 0).any() for score in leaves):
        raise ValueError(
            f"{what}: all scores are 0, and would be ranked by the order of their indices: no "
            "weight has an effect on the result. A layer of zeros, or of units that are all dead, "
            "cuts every path: draw its weights before, and mask nothing. An input of zeros, or one "
            "that underflows, does so too."
        )


def schedule(sparsity: Any, rounds: int, size: int) -> jax.Array:
    """How many of `size` weights are kept after each round: int32 (rounds,).

        kept_t = size exp(t / rounds ln(1 - sparsity)),   t = 1 ... rounds

    The last one is `size - round(sparsity * size)`, exactly.
    """
    last = count(sparsity, size)
    if isinstance(sparsity, (int, float)):
        pruned = [count(1 - (1 - sparsity) ** (t / rounds), size) for t in range(1, rounds)]
        return size - jnp.asarray([*pruned, last], jnp.int32)
    times = jnp.asarray(np.arange(1, rounds) / rounds, jnp.float32)
    ten_millionths = 10**7 - count(sparsity, 10**7)  # in float32, 1 - 0.999999 is 1.3 % too much
    density = ten_millionths.astype(jnp.float32) / 1e7
    early = count(-jnp.expm1(times * jnp.log(density)), size)
    return size - jnp.append(jnp.minimum(early, last), last)  # float32 may pass the last by one


def keep(scores: Scores, kept: jax.Array) -> Masks:
    """Masks of the `kept` highest scores of all leaves together."""
    leaves, treedef = jax.tree.flatten(scores)
    return jax.tree.unflatten(treedef, largest(leaves, kept, together=True))


def shrink(context: Context, masks: Masks, kept: jax.Array) -> tuple[Masks, None]:
    """A round that scores |w dL/dw| at the masked weights; what is pruned stays pruned."""
    loss, own = context
    left = apply_masks(own, masks)
    return keep(among(masks, saliency(left, grads=jax.grad(loss)(left))), kept), None
