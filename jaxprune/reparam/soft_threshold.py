"""Soft threshold reparameterization: thresholds that are learned beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.gates.gate import Logits
from jaxprune.gates.gate import logits as gate_logits
from jaxprune.masks import merged
from jaxprune.prunable.layers import split_like
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import map_scored


class SoftThreshold(NamedTuple):
    """What `soft_threshold` trains.

    Attributes:
      weights: the params.
      logits: float32, of the rank of their weight and with one entry for each threshold; None
        where a leaf has no threshold.
    """

    weights: Params
    logits: Logits


def soft_threshold(
    logit: float = -3200.0,
    threshold: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
    axes: int | tuple[int, ...] | None = (),
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """The network uses sign(w) relu(|w| - threshold(s)); the weights w and the logits s learn.

    A weight below its threshold is exactly 0 in the network, and has no gradient until the
    threshold falls. The masks are `w != 0` of what `apply` makes. Weight decay on all that is
    learned raises the thresholds, and so the sparsity. At a low logit the threshold is 0, in
    float32 exactly, and `apply(init(params))` is `params`; only decay moves it from there.

    Masks of `sparsify` are of `weights`: a weight that is 0 there is 0 in the network. Leave the
    logits out, `prunable=matching(exclude="logits/*")`.

    Args:
      logit: the logits at the start.
      threshold: from logits to thresholds of at least 0.
      axes: which entries share a threshold, as in `gates.logits`. (): one for each leaf. None: one
        for each weight.
      prunable: which leaves have thresholds; all others are used as they are.

    Raises:
      TypeError: if `apply` gets another tree than `init` makes.
      ValueError: if no leaf is prunable, or a leaf has no such axis.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> half = jp.reparam.soft_threshold(logit=0.0)
    >>> half.apply(half.init({'kernel': jnp.array([[2., -.25, -1.]])}))['kernel']
    Array([[ 1.5, -0. , -0.5]], dtype=float32)

    Reference: Kusupati et al., 2020, Soft Threshold Weight Reparameterization for Learnable
    Sparsity.
    """

    def init(params: Params) -> SoftThreshold:
        return SoftThreshold(params, gate_logits(prunable(params), axes, logit))

    def used(s: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sign(w) * jax.nn.relu(jnp.abs(w) - threshold(s).astype(w.dtype))

    def apply(learned: SoftThreshold, *, key: Any = None, step: Any = None) -> Params:
        weights, logits = check_learned("soft_threshold", SoftThreshold, learned)
        return merged(weights, map_scored(used, logits, split_like(weights, logits)))

    return Reparameterization(init, apply)
