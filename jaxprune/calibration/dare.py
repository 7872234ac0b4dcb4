"""DARE: most of what fine-tuning changed is dropped at random, and the rest is scaled up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params, check_fraction, is_known
from jaxprune.masks import merged
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import kernels
from jaxprune.trees import check_like, map_named


def dare(
    key: jax.Array,
    start: Params,
    tuned: Params,
    drop: float = 0.9,
    rescale: Any = None,
    prunable: Callable[[Params], Params] = kernels,
) -> Params:
    """Fine-tuned params of which each change was dropped with some probability.

        start + keep (tuned - start) / rescale,   keep = 1 with probability 1 - drop

    With `rescale = 1 - drop` the mean over draws is `tuned`. A larger divisor, at most 1, gives up
    some of the mean for less variance (DAREx): `dare_rescale` chooses it for each leaf.

    Args:
      key: draws what is dropped.
      start, tuned: trees alike, before and after fine-tuning.
      drop: the probability, in [0, 1).
      rescale: the divisor, in (0, 1]: a number, or a tree of numbers like the params, None where a
        leaf has that of `1 - drop`.
      prunable: leaves whose changes are dropped; all others are those of `tuned`.

    Returns:
      Params of the dtypes of `tuned`.

    Raises:
      ValueError: for a probability or a divisor outside of these, or trees that differ.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> start, tuned = {'kernel': jnp.zeros((1, 6))}, {'kernel': jnp.ones((1, 6))}
    >>> jp.calibration.dare(jax.random.key(0), start, tuned, 0.5)['kernel']
    Array([[2., 2., 0., 2., 2., 2.]], dtype=float32)

    References: Yu et al., 2024, Language Models are Super Mario: Absorbing Abilities from
    Homologous Models as a Free Lunch; Deng et al., 2025, DARE the Extreme: Revisiting
    Delta-Parameter Pruning For Fine-Tuned Models.
    """
    check_fraction(drop, "dare takes the probability that a change is dropped.")
    check_like("dare: start", start, tuned)
    chosen = folded(prunable(tuned))
    each = _by_leaf(rescale, chosen)
    names: list[str] = []

    def leaf(name: str, part: Any, before: Any, after: Any, divisor: Any) -> Any:
        if part is None:
            return None
        divisor = 1 - drop if divisor is None else divisor
        if is_known(divisor) and not 0 < float(divisor) <= 1:
            raise ValueError(f"dare: rescale of '{name}' must be in (0, 1], got {divisor:g}.")
        names.append(name)
        keep = jax.random.bernoulli(jax.random.fold_in(key, len(names)), 1 - drop, after.shape)
        changed = jnp.where(keep, (after - before).astype(jnp.float32) / divisor, 0)
        return (before.astype(jnp.float32) + changed).astype(after.dtype)

    return merged(tuned, map_named(leaf, chosen, start, tuned, each))


def _by_leaf(rescale: Any, chosen: Any) -> Any:
    """The divisor of each leaf, or None."""
    if rescale is None or not isinstance(rescale, dict | list | tuple):
        return jax.tree.map(lambda _: rescale, chosen, is_leaf=lambda x: x is None)
    return rescale


def dare_rescale(
    change: jax.Array,
    mean: jax.Array,
    drop: float,
    risk: float = 0.05,
    strength: float = 0.37,
    candidates: int = 1000,
) -> jax.Array:
    """The divisor of one kernel that keeps its outputs where they were, without any labels.

    For each output, with c = change * mean(inputs), phi = (1 - 2 drop) / ln((1 - drop) / drop):

        the q of least |eta (1 - (1 - drop) / q) sum c + eta^2 phi sum c^2 / (4 q^2) + ln(2 / risk)|

    and then the mean over outputs: a bound on how far an output moves by chance.

    Args:
      change: float (inputs, outputs), tuned minus start.
      mean: (inputs,), the mean of each input: `statistics(...).mean`.
      drop: in (0, 1), and not 1/2, where phi is its limit.
      risk: the chance, in (0, 1), that the bound does not hold.
      strength: eta, a positive number; the authors take .27 to 1.01, by task.
      candidates: of q, evenly spread from 1 - drop to 1.

    Returns:
      A float32 scalar in [1 - drop, 1).

    Reference: Deng et al., 2025, DARE the Extreme: Revisiting Delta-Parameter Pruning For
    Fine-Tuned Models.
    """
    if not 0 < drop < 1:
        raise ValueError(f"dare_rescale: drop must be in (0, 1), got {drop:g}.")
    if not 0 < risk < 1 or strength <= 0:
        raise ValueError(
            f"dare_rescale: risk is in (0, 1) and strength above 0; got {risk:g} and {strength:g}."
        )
    phi = 0.5 if drop == 0.5 else (1 - 2 * drop) / np.log((1 - drop) / drop)
    c = change.astype(jnp.float32) * mean.astype(jnp.float32)[:, None]
    total, squares = c.sum(0), jnp.square(c).sum(0)  # (outputs,)
    q = jnp.linspace(1 - drop, 1, candidates, endpoint=False)[:, None]
    bias = strength * (1 - (1 - drop) / q) * total[None]
    bound = bias + strength**2 * phi * squares[None] / (4 * q**2) + np.log(2 / risk)
    return q[:, 0][jnp.argmin(jnp.abs(bound), 0)].mean()
