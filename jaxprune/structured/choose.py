"""The neurons of the highest scores: so many of each group, and at least one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.base import Allocation, Scores, Sparsity
from jaxprune.selection.counting import count
from jaxprune.selection.largest import largest


def choose(
    scores: Scores, allocation: Allocation, sparsity: Sparsity, round_to: int = 1
) -> dict[str, jax.Array]:
    """The highest scores of each group, at least one of each; jit-able, nothing is checked."""
    # what scores most in its group is out of the competition
    best = {name: jnp.arange(s.size) == jnp.argmax(ranked(s)) for name, s in scores.items()}
    safe = {name: jnp.where(best[name], jnp.inf, s) for name, s in scores.items()}
    pruned = allocation(safe, sparsity)
    kept = {}
    for name, s in safe.items():
        n = s.size - jnp.asarray(count(pruned[name], s.size), jnp.int32)
        if round_to > 1:
            n = jnp.where(n == s.size, n, jnp.maximum(n // round_to * round_to, round_to))
        kept[name] = jnp.clip(n, 1, s.size)
    masks = largest(list(safe.values()), jnp.stack([kept[name] for name in safe]))
    return dict(zip(safe, masks, strict=True))


def ranked(s: jax.Array) -> jax.Array:
    """Scores with nan, which is kept and seen, above all."""
    return jnp.where(jnp.isnan(s), jnp.inf, s)
