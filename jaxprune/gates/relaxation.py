"""Continuous relaxation: what makes gates of channels leave the middle, and none of them all close.

The gates are sigmoids, `continuous_sparsification(5.0, inf)` of logits that start at 1. A stage of
training pulls them down by their relative cost (`structured.relaxed_cost`), then drives those that
have come down away from 1/2 (`ejector`). The next stage cuts those under a threshold, a
little higher each time, and trains on.

Reference: Larson, Upadhyaya, McDermott and Ganju, 2023, A Generalization of Continuous Relaxation
in Structured Pruning.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.gates.gate import Gates, Logits, check_positive
from jaxprune.gates.slimming import sum_of
from jaxprune.trees import map_scored, named_leaves, quoted


def keep_strongest(gates: Gates, only: Collection[str] | None = None) -> Gates:
    """`gates` with each leaf divided by its largest: the strongest of each passes whole, always.

    The gradient flows through the maximum. Gates that share a cost may otherwise all close, which
    a norm after them hides until they are cut.

    Args:
      gates: pytree of floats in [0, 1], such as {group: (size,)}; None leaves stay None.
      only: the paths of the leaves that it is done to, the others stay; None for all.

    Raises:
      ValueError: if `only` names what is not there.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.gates.keep_strongest({'a': jnp.array([.5, .25]), 'b': jnp.array([.5])}, only=['a'])
    {'a': Array([1. , 0.5], dtype=float32), 'b': Array([0.5], dtype=float32)}
    """
    leaves = named_leaves(gates)
    if unknown := set(only or ()) - {path for path, _ in leaves}:
        raise ValueError(
            f"gates.keep_strongest: there are no gates of {sorted(unknown)}; there are "
            f"{quoted(leaves)}."
        )

    def leaf(path: str, f: Any) -> Any:
        if f is None or (only is not None and path not in only):
            return f
        return f / jnp.maximum(jnp.max(f), jnp.finfo(f.dtype).tiny)

    treedef = jax.tree.structure(gates, is_leaf=lambda x: x is None)
    return jax.tree.unflatten(treedef, [leaf(path, f) for path, f in leaves])


def ejector(logits: Logits, rho: Any = 1.0, kept: Any = None) -> jax.Array:
    """How undecided gates are: a float32 scalar, 1 if all logits are 0, 0 if all are far away.

        b = exp(-(s / (2 rho^2))^2),   ejector = sqrt(mean of b^2 over all gates)

    A bump at s = 0, where a sigmoid is 1/2, with standard deviation sqrt(2) rho^2. Add it to the
    loss only once the cost has moved the gates (`cubic_ramp`): from the start it holds them where
    they are, above 0.

    Args:
      logits: pytree of floats; None leaves count nothing.
      rho: above 0; may be traced.
      kept: bool, like the logits: those that still count. None for all.

    Raises:
      ValueError: if rho is not above 0.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> round(float(jp.gates.ejector({'a': jnp.array([1., .2]), 'b': jnp.array([-.4, -.9])})), 4)
    0.8912

    Reference: the code of the first author, Larson, 2023 (github.com/bhlarson/mllib).
    """
    check_positive("ejector", "rho", rho)
    if kept is None:
        kept = map_scored(lambda s: jnp.ones_like(s, bool), logits)
    counted = map_scored(
        lambda s, m: jnp.where(m, jnp.exp(-2 * (s / (2 * rho**2)) ** 2), 0.0), logits, kept
    )
    n = sum_of(map_scored(lambda m: m.astype(jnp.float32), kept))
    mean = sum_of(counted) / jnp.maximum(n, 1.0)
    return jnp.sqrt(jnp.maximum(mean, jnp.finfo(jnp.float32).tiny))  # no slope of 1 / 0


def cubic_ramp(begin: float, end: float) -> optax.Schedule:
    """From 0 at step `begin` to 1 at `end`: clip((step - begin) / (end - begin), 0, 1)^3.

    Raises:
      ValueError: unless begin < end.

    >>> import jaxprune as jp
    >>> float(jp.gates.cubic_ramp(24, 25)(24.5))
    0.125
    """
    if not begin < end:
        raise ValueError(f"cubic_ramp needs begin < end; got {begin} and {end}.")

    def schedule(step: Any) -> jax.Array:
        return jnp.clip((jnp.asarray(step, jnp.float32) - begin) / (end - begin), 0.0, 1.0) ** 3

    return schedule
