"""Drop and grow: the two verbs of dynamic sparse training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, Scores, is_known, widened
from jaxprune.selection.counting import portion
from jaxprune.selection.deferred import Layer, defer
from jaxprune.selection.largest import largest
from jaxprune.selection.uncut import counts_of, elementwise
from jaxprune.trees import map_scored, present_leaves

Counts = Any  # int32 scalars, like masks: how many weights of each leaf


def drop(masks: Masks, scores: Scores, counts: Counts) -> Masks:
    """`masks` without the `counts` kept weights of each leaf that score lowest.

    Args:
      masks: bool, None where never pruned.
      scores: floats like `masks`, higher = keep; ignored where a mask is False. Among equals the
        lower flat index is kept.
      counts: how many to drop, int32 like `masks` (see `dynamic.counts`), or one number
        for every leaf.

    Raises:
      ValueError: if a leaf keeps fewer weights than it would drop, where that is known.
    """
    counts = _of_each(masks, counts)
    _check_room("drop", masks, counts)
    n_kept, n_dropped = (jnp.stack(jax.tree.leaves(n)) for n in (counts_of(masks), counts))
    return _largest_of_each(defer(among, masks, scores), n_kept - n_dropped)


def grow(masks: Masks, scores: Scores, counts: Counts) -> Masks:
    """`masks` and the `counts` other weights of each leaf that score highest.

    Args:
      masks: bool, None where never pruned.
      scores: floats like `masks`; ignored where a mask is True. Among equals the lower flat index
        grows.
      counts: how many to grow, int32 like `masks` (see `dynamic.counts`), or one number
        for every leaf.

    Raises:
      ValueError: if a leaf has fewer free places than it would grow, where that is known.
    """
    counts = _of_each(masks, counts)
    _check_room("grow", masks, counts)
    free = defer(lambda m: map_scored(jnp.logical_not, m), masks)
    grown = jnp.stack(jax.tree.leaves(counts))
    return elementwise(jnp.logical_or, masks, _largest_of_each(defer(among, free, scores), grown))


def counts(masks: Masks, fraction: Any, up: bool = False) -> Counts:
    """`floor(fraction * kept)` of each leaf, int32 scalars like `masks`; with `up` the ceiling."""
    leaves, treedef = jax.tree.flatten(counts_of(masks))
    return jax.tree.unflatten(treedef, list(portion(fraction, jnp.stack(leaves), up)))


def among(masks: Masks, scores: Scores) -> Scores:
    """`scores` in which every entry of a mask ranks above all entries outside it."""

    def leaf(mask: jax.Array, score: jax.Array) -> jax.Array:
        score = widened(score)
        lowest = jnp.finfo(score.dtype).min
        return jnp.where(mask, jnp.maximum(score, lowest), -jnp.inf)  # a nan stays one

    return map_scored(leaf, masks, scores)


def _largest_of_each(scores: Scores, counts: jax.Array) -> Masks:
    leaves, treedef = jax.tree.flatten(scores)
    return jax.tree.unflatten(treedef, largest(leaves, counts))


def _of_each(masks: Masks, counts: Counts) -> Counts:
    return map_scored(lambda _: counts, masks) if np.isscalar(counts) else counts


def _check_room(verb: str, masks: Masks, counts: Counts) -> None:
    for (path, mask), n in zip(present_leaves(masks), jax.tree.leaves(counts), strict=True):
        if isinstance(mask, Layer) or not is_known((mask, n)):
            continue
        n_kept = int(np.sum(mask))
        room = n_kept if verb == "drop" else mask.size - n_kept
        if not 0 <= n <= room:
            raise ValueError(
                f"{verb}: got the number {n} for '{path}', which keeps {n_kept} of {mask.size} "
                "weights. dynamic.counts(masks, fraction) counts a fraction of the kept weights."
            )
