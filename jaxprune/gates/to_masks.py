"""From gates to masks: by threshold, by number, or as many as a budget pays for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.at_init.empty_layers import empty_layers
from jaxprune.base import Masks, Params, Scores, is_known, widened
from jaxprune.gates.budgets import check_target
from jaxprune.selection.largest import largest
from jaxprune.trees import fitted, is_none, map_scored, quoted


def threshold(gates: Any, above: float = 0.0) -> Masks:
    """Which gates are open: gates > `above`; bool, like `gates`.

    For an exact number of gates select by their logits, which are scores:
    `select(logits, global_threshold, 0.8)`.

    Args:
      gates: such as `gate.deterministic(logits)`.
      above: 0 for families with exact zeros, 1/2 for others.

    Warns:
      UserWarning: if all gates of a leaf are closed, where that is known (not under `jit`).
    """
    masks = map_scored(lambda g: g > above, gates)
    leaves = jax.tree.leaves(masks)
    known = leaves and is_known(leaves)
    dead = [(path, None) for path, closed in empty_layers(masks).items() if closed] if known else []
    if dead:
        warnings.warn(
            f"all gates of {quoted(dead)} are closed: nothing passes. "
            "Keep some of each: select(keep_at_least(logits, 1), ...), or lower the budget's pull.",
            stacklevel=2,
        )
    return masks


def keep_at_least(scores: Scores, n: int = 1) -> Scores:
    """`scores` with the `n` highest of each leaf at infinity, so that every selection keeps them.

    Args:
      scores: such as the logits of gates; None leaves stay None.
      n: how many of each leaf; all of a leaf that has no more.

    Raises:
      ValueError: if `n` is no positive integer.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.gates.keep_at_least({'a': jnp.array([1., -3.]), 'b': jnp.array([-5., -4.])})
    {'a': Array([inf, -3.], dtype=float32), 'b': Array([-5., inf], dtype=float32)}
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"keep_at_least(scores, n) needs a positive integer; got n={n!r}.")

    def leaf(s: jax.Array) -> jax.Array:
        s = s if np.isinf(np.array(np.inf, s.dtype)) else widened(s)  # not all float8 have inf
        return jnp.where(largest([s], [min(n, s.size)])[0], jnp.inf, s)

    return map_scored(leaf, scores)


def within_budget(scores: Scores, kept: Callable[[Masks], jax.Array], target: Any) -> Masks:
    """The most gates, highest scores first, that keep at most `target`: bool, like `scores`.

    Bisection finds their number with log2(gates) evaluations of the cost. Gates with score infinity
    are kept at any cost (`keep_at_least`).

    Args:
      scores: such as the logits of gates, ranked over all leaves together; None where none.
      kept: from masks like `scores` to the fraction that they keep, such as
        `lambda open: kept_flops(open, flops, params)`; more gates never keep less.
      target: the fraction to keep, in (0, 1).

    Raises:
      ValueError: if the target is known and not in (0, 1), there is nothing to select, or (where
        that is known, not under `jit`) no selection keeps so little.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> kernel = {'kernel': jnp.ones((4, 3))}
    >>> logits = {'kernel': jnp.array([[.1], [.4], [-.2], [.3]])}
    >>> open = jp.gates.within_budget(logits, lambda open: jp.gates.kept_weights(open, kernel), 0.6)
    >>> open['kernel'][:, 0].astype(int)
    Array([0, 1, 0, 1], dtype=int32)
    """
    check_target("gates.within_budget", target)
    leaves, treedef = jax.tree.flatten(scores)
    if not leaves:
        raise ValueError("gates.within_budget: there is nothing to select, all scores are None.")
    total = sum(s.size for s in leaves)
    most = target * (1 + 1e-6)  # a cost is a sum of float32

    def masks(k: jax.Array) -> Masks:
        return jax.tree.unflatten(treedef, largest(leaves, k, together=True))

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # `low` gates are within the target, `high` + 1 are not
        middle = (low + high + 1) // 2
        fits = kept(masks(middle)) <= most
        return jnp.where(fits, middle, low), jnp.where(fits, high, jnp.maximum(middle - 1, low))

    forced = sum(jnp.sum(s == jnp.inf, dtype=jnp.int32) for s in leaves)
    start = forced, jnp.full_like(forced, total)
    number, _ = lax.fori_loop(0, math.ceil(math.log2(total + 1)), halve, start)
    selected = masks(number)
    least = kept(selected)
    if is_known(least) and least > most:
        raise ValueError(
            f"gates.within_budget: no selection keeps {float(target):g} or less; with the "
            f"{int(number)} gates that must stay open it is {float(least):.4g}. Raise the target, "
            "keep fewer of each, or gate more."
        )
    return selected


def masks(open_: Masks, params: Params) -> Masks:
    """Masks of gates as masks of weights: each broadcast to its parameter; bool, None where None.

    Raises:
      ValueError: if they do not broadcast to their params; it names the leaf and both shapes.
    """
    leaves = [
        None if m is None else jnp.broadcast_to(m, w.shape)
        for _, w, m in fitted("gates.masks", open_, params)
    ]
    return jax.tree.unflatten(jax.tree.structure(params, is_leaf=is_none), leaves)
