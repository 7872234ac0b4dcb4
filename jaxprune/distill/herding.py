"""Herding: real examples whose mean feature is near the mean over all."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.base import widened


def herding(features: jax.Array, n: int) -> jax.Array:
    """Which examples to take, int32 (n,), in the order in which they are chosen.

    Each choice brings the mean of those chosen nearest to the mean over all. No example is chosen
    twice; of equal ones the first is. Call it for each class by itself.

    Args:
      features: (examples, d).
      n: how many, in [1, examples].

    Raises:
      ValueError: if `features` is no matrix or `n` is outside this range.

    Reference: Welling, 2009, Herding Dynamical Weights to Learn.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.distill.herding(jnp.array([[0.], [3.], [4.], [9.]]), 3).tolist()  # the mean is 4
    [2, 1, 3]
    """
    if jnp.ndim(features) != 2:
        raise ValueError(f"herding: features are (examples, d); got shape {jnp.shape(features)}.")
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(features):
        raise ValueError(
            f"herding: n is how many of {len(features)} examples to take, at least 1; got {n!r}."
        )
    features = widened(features)
    mean = features.mean(0, keepdims=True)  # (1, d)

    def choose(carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        total, free = carry
        distances = jnp.sum(((total + features) / (i + 1) - mean) ** 2, axis=1)
        choice = jnp.argmin(jnp.where(free, distances, jnp.inf)).astype(jnp.int32)
        return (total + features[choice][None], free.at[choice].set(False)), choice

    start = jnp.zeros_like(mean), jnp.ones(len(features), bool)
    return jax.lax.scan(choose, start, jnp.arange(n))[1]
