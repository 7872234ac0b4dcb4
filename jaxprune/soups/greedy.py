"""Greedy soups: the average of the networks that improve it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.base import Params, shown
from jaxprune.soups.average import soup
from jaxprune.trees import count_seeds

Average = Callable[[Params, Any], Params]  # (stack, weights (members,)) -> params
HeldOut = Callable[[Params], Any]  # params -> scalar, higher = better


class GreedySoup(NamedTuple):
    """The result of `greedy`."""

    params: Params  # the average of the chosen
    chosen: jax.Array  # bool (members,)
    score: jax.Array  # of the average, a scalar
    scores: jax.Array  # of each member alone (members,)


def greedy(stack: Params, score: HeldOut, average: Average = soup) -> GreedySoup:
    """The mean of the members that do not lower its held-out score, from the best on.

    Members are tried from the highest score down, equal ones in the order of the stack. A member is
    chosen if the average with it scores at least as high as without it: ties are accepted. So the
    score is never below that of the best member, on the held-out data; report it on other data.

    It jits and vmaps: average and score compile twice for any number of members.

    Args:
      stack: see `soup`.
      score: `params -> scalar`, higher = better, of JAX operations, such as the accuracy on a
        validation split: never on training data, which all members fit, nor on test data.
      average: `(stack, weights) -> params`. With running statistics, make those of each average
        anew before it is scored; a member alone is such an average too:
        `lambda stack, weights: analysis.recalibrate(update, soup(stack, weights), batches)`.

    Raises:
      TypeError: if `score` is no function.
      ValueError: if it returns no scalar; and what `soup` raises.

    References: Wortsman et al., 2022, Model soups (ties are refused in their code); Zimmer et al.,
    2024, Sparse Model Soups (accepted).

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> near_2 = lambda params: -abs(params['w'] - 2)
    >>> jp.soups.greedy({'w': jnp.array([9., 3., 1.])}, near_2).chosen.tolist()
    [False, True, True]
    """
    if not callable(score):
        raise TypeError(
            "soups.greedy orders and chooses members by a held-out score, a function of params to "
            "a scalar, higher = better, such as the accuracy on a validation split; got "
            f"{shown(score)}. Without held-out data, take soup(stack)."
        )
    members = count_seeds(stack)

    def of(weights: jax.Array) -> jax.Array:
        value = jnp.asarray(score(average(stack, weights)))
        if value.shape:
            raise ValueError(
                f"soups.greedy: the score must be a scalar; it has shape {value.shape}. Take its "
                "mean over the examples."
            )
        return value.astype(jnp.promote_types(value.dtype, jnp.float32))

    def mean(chosen: jax.Array) -> jax.Array:
        return chosen / chosen.sum(dtype=jnp.float32)

    scores = lax.map(of, jnp.eye(members))
    order = jnp.argsort(-scores, stable=True)  # nan comes last

    def tried(best: tuple, member: jax.Array) -> tuple:
        chosen, value = best
        more = chosen.at[member].set(True)
        with_it = of(mean(more))
        no_worse = with_it >= value
        return (jnp.where(no_worse, more, chosen), jnp.where(no_worse, with_it, value)), None

    first = jnp.arange(members) == order[0]
    (chosen, value), _ = lax.scan(tried, (first, scores[order[0]]), order[1:])
    return GreedySoup(average(stack, mean(chosen)), chosen, value, scores)
