"""The bi-mask of Once for Both: importance of units and a choice of sizes, one soft mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import is_known


def bi_mask(scores: jax.Array, logits: jax.Array, sizes: Sequence[int], weight: Any) -> jax.Array:
    """A soft mask of the units of one axis: float32 (units,), in [0, 1].

        mask = weight sigmoid(score) + (1 - weight) sum_j softmax(logits)_j [rank < sizes_j]

    The second part keeps the `sizes_j` units of the highest scores. Train scores, logits and
    weights of the network together, with `weight` from 0.99 to 0.1; `one_hot_loss` leads the
    logits to one size. The budget is on the expected size, `softmax(logits) @ sizes`.

    Args:
      scores: float (units,), the importance of each unit.
      logits: float (len(sizes),); -inf closes a size for good.
      sizes: the numbers of units to choose from, each from 0 to all.
      weight: of the importance, in [0, 1]; may be traced, as of a schedule.

    Raises:
      ValueError: if shapes, sizes or weight do not fit.

    >>> import jax.numpy as jnp
    >>> scores, logits = jnp.array([0., 3., -3.]), jnp.zeros(2)
    >>> bi_mask(scores, logits, (1, 2), weight=0.0)     # both sizes have the first, one the second
    Array([0.5, 1. , 0. ], dtype=float32)

    Reference: Ye et al., 2024, Once for Both: Single Stage of Importance and Sparsity Search for
    Vision Transformer Compression.
    """
    if jnp.ndim(scores) != 1 or jnp.shape(logits) != (len(sizes),):
        raise ValueError(
            "bi_mask needs scores (units,) and a logit for each size; got scores of shape "
            f"{jnp.shape(scores)}, logits of shape {jnp.shape(logits)} and {len(sizes)} sizes. "
            "With an axis of seeds in front, use vmap."
        )
    units = len(scores)
    if wrong := [size for size in sizes if not 0 <= size <= units]:
        raise ValueError(f"bi_mask: there are {units} units, and no size {wrong[0]} of them.")
    if is_known(weight) and not 0 <= float(weight) <= 1:
        raise ValueError(f"bi_mask: weight is in [0, 1]; got {weight}.")
    rank = jnp.argsort(jnp.argsort(-scores, stable=True))  # 0 for the highest score
    prefixes = jnp.asarray(np.arange(units)[None] < np.asarray(sizes)[:, None], jnp.float32)
    chosen = (jax.nn.softmax(logits.astype(jnp.float32)) @ prefixes)[rank]
    return weight * jax.nn.sigmoid(scores.astype(jnp.float32)) + (1 - weight) * chosen


def one_hot_loss(p: jax.Array) -> jax.Array:
    """How far probabilities are from one choice: float32 (...,), +inf if uniform, falling to -inf.

        entropy + tan(pi / 2 - pi r) / n,   r = sum((p - 1/n)^2) / (1 - 1/n)

    Args:
      p: probabilities (..., n) of the n choices that are still open; n is 2 or more.

    Raises:
      ValueError: if there is one choice or none.

    >>> import jax.numpy as jnp
    >>> [round(float(one_hot_loss(jnp.array(p))), 4) for p in ([.6, .2, .2], [.98, .01, .01])]
    [1.5566, -1.6627]

    Reference: Ye et al., 2024, Once for Both: Single Stage of Importance and Sparsity Search for
    Vision Transformer Compression.
    """
    n = jnp.shape(p)[-1] if jnp.ndim(p) else 0
    if n < 2:
        raise ValueError(
            f"one_hot_loss needs probabilities of two or more choices; got shape {jnp.shape(p)}."
        )
    p = p.astype(jnp.float32)
    r = jnp.sum(jnp.square(p - 1 / n), -1) / (1 - 1 / n)
    entropy = -jnp.sum(jax.scipy.special.xlogy(p, p), -1)
    nearest = jnp.clip(jnp.minimum(r, 1 - r), 0.0)  # sin(pi) is not 0 in floats
    return entropy + jnp.cos(jnp.pi * r) / jnp.sin(jnp.pi * nearest) / n
