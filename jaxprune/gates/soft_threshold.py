"""Soft threshold reparameterization: thresholds that are learned beside the weights."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.gates.gate import Logits
from jaxprune.trees import fitted, is_none


def soft_threshold(
    params: Params, logits: Logits, threshold: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid
) -> Params:
    """The params that the network uses: sign(w) relu(|w| - threshold(s)); like `params`.

    What is below its threshold is exactly 0, and learns nothing until the threshold falls. The
    logits s start low (the paper: -3200 for a sigmoid); weight decay on them, of all learned
    params alike, raises the thresholds.

    Args:
      params: the weights that learn.
      logits: such as `logits(kernels(params), axes=())`, a threshold a layer; None where a
        leaf has none.
      threshold: from logits to thresholds above 0.

    Raises:
      ValueError: if the logits do not broadcast to their params; it names the leaf.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.gates.soft_threshold({'w': jnp.array([2., -.25, -1.])}, {'w': jnp.zeros(1)})['w']
    Array([ 1.5, -0. , -0.5], dtype=float32)

    Reference: Kusupati et al., 2020, Soft Threshold Weight Reparameterization for Learnable
    Sparsity.
    """

    def used(w: jax.Array, s: jax.Array) -> jax.Array:
        return jnp.sign(w) * jax.nn.relu(jnp.abs(w) - threshold(s).astype(w.dtype))

    leaves = [
        w if s is None else used(w, s) for _, w, s in fitted("soft_threshold", logits, params)
    ]
    return jax.tree.unflatten(jax.tree.structure(params, is_leaf=is_none), leaves)
