"""Activating while pruning: a part of each prune takes negative weights that have moved little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import global_threshold
from jaxprune.base import Allocation, MaskTransform, Params, Scores, widened
from jaxprune.methods.combine import chain
from jaxprune.methods.prune import prune
from jaxprune.prunable.layers import folded, split_like
from jaxprune.prunable.rules import kernels
from jaxprune.scores import magnitude
from jaxprune.trees import check_like, map_scored


def ap(
    sparsity: optax.Schedule,
    share: float = 0.1,
    allocation: Allocation = global_threshold,
    prunable: Callable[[Params], Params] = kernels,
    start: float = 0.0,
) -> MaskTransform:
    """Prunes by magnitude, and a share of each phase by `activating`: AP on top of magnitude.

        first  the smallest |w|                        1 - share of what the phase prunes
        then   of the negative weights that are left   share of it
               those with the smallest |w - w of the rewind step|

    A unit with ReLU gives zero where its sum is negative. Without these weights fewer sums are
    negative, so more units are active. `iterative` and `next_phase` tell the transform where the
    weights were rewound to:

        iterative(train, params, ap(schedule(0.98, 18)), 18, rewind_to=early)

    It is `chain(prune(magnitude, ...), prune(activating, ...))`, with two schedules.

    Args:
      sparsity: after each phase, a function of the phase (int32, from 0), such as
        `tickets.schedule(0.98, 18)`.
      share: of the weights that a phase prunes, in [0, 1]. The authors prune 20 % of what is left
        in a phase, and 2 of these 20 points by this rule: 0.1.
      allocation: how much of each leaf.
      prunable: `params -> params` with None in place of what is never pruned.
      start: the sparsity before the first phase.

    Raises:
      TypeError: if `sparsity` is no schedule.
      ValueError: if the share is outside [0, 1], or a sparsity outside [0, 1); (in update) if the
        weights were not rewound.

    Reference: Liu et al., 2022, AP: Selective Activation for De-sparsifying Pruned Neural Networks.
    """
    if not callable(sparsity):
        raise TypeError(
            "tickets.ap: sparsity is a function of the phase, such as "
            f"jp.tickets.schedule(0.98, 18); got {sparsity!r}."
        )
    if isinstance(share, (int, float)) and not 0 <= share <= 1:
        raise ValueError(
            "tickets.ap: share is the fraction of what a phase prunes that this rule chooses, in "
            f"[0, 1]; got {share!r}."
        )

    def by_magnitude(phase: Any) -> Any:
        before = jnp.where(phase > 0, sparsity(jnp.maximum(phase - 1, 0)), start)
        return before + (1 - share) * (sparsity(phase) - before)

    return chain(
        prune(magnitude, allocation, by_magnitude, prunable=prunable),
        prune(activating, allocation, sparsity, prunable=prunable),
    )


def activating(params: Params, *, rewind_to: Params = None, **_: Any) -> Scores:
    """Negative weights by how far they have moved, below all others; the others by |w|.

        -1 / |w - v|   where w < 0, and v is its value at the rewind step
        |w|            elsewhere

    So of all negative weights those that moved least go first.

    Args:
      params: as trained, None where never pruned.
      rewind_to: the weights at the rewind step, like the params; `next_phase` gives them.

    Raises:
      ValueError: without `rewind_to`, or if it is not like the params.

    Reference: Liu et al., 2022, AP: Selective Activation for De-sparsifying Pruned Neural Networks.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> early, late = jnp.array([-0.5, -0.25, 0.25]), jnp.array([-0.75, -0.75, 0.25])
    >>> jp.tickets.activating({'kernel': late}, rewind_to={'kernel': early})['kernel']
    Array([-4.  , -2.  ,  0.25], dtype=float32)
    """
    if rewind_to is None:
        raise ValueError(
            "tickets.activating measures how far weights have moved since the rewind step, and "
            "needs the weights there: jp.tickets.iterative(..., rewind_to=early), or "
            "tx.update(grads, state, params, rewind_to=early)."
        )
    stacked = folded(params)
    check_like("activating: rewind_to", rewind_to, stacked, extra=True, containers=False)
    early = split_like(rewind_to, params)

    def score(w: jax.Array, v: jax.Array) -> jax.Array:
        w, v = widened(w), widened(v)
        least = jnp.finfo(w.dtype).tiny  # a weight that did not move has a finite score
        return jnp.where(w < 0, -1 / jnp.maximum(jnp.abs(w - v), least), jnp.abs(w))

    return map_scored(score, params, early)
