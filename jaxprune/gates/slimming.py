"""Penalties on the scales of norms: network slimming, and MaskSparsity, which knows where."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.base import Masks, Params
from jaxprune.masks import like
from jaxprune.trees import map_scored


def slimming(scales: Params) -> jax.Array:
    """The sum of |scale|: float32 scalar. Times a strength of 1e-5 to 1e-4, added to the loss.

    Its gradient is sign(scale), and 0 at 0. Exempt scales from weight decay, or the two mix. What
    is left of a channel whose scale is 0 is a constant, by its bias.

    Args:
      scales: such as `matching('*/scale')(params)`; None leaves count nothing.

    Reference: Liu et al., 2017, Learning Efficient Convolutional Networks through Network Slimming.
    """
    return sum_of(map_scored(magnitude, scales))


def mask_sparsity(scales: Params, masks: Masks) -> jax.Array:
    """The sum of |scale| of what is to be pruned, where the mask is False: float32 scalar.

    What the masks keep has a gradient of exactly 0. Choose them on a network trained with
    `slimming`, start again from its dense twin (strength 5e-4), and prune |scale| <= 0.01.

    Args:
      scales: such as `matching('*/scale')(params)`; None leaves count nothing.
      masks: bool, True = kept, like `scales`.

    Raises:
      ValueError: if they belong to other params.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> scales, masks = {'scale': jnp.array([3., -2.])}, {'scale': jnp.array([True, False])}
    >>> float(jp.gates.mask_sparsity(scales, masks))
    2.0

    Reference: Jiang et al., 2023, Pruning-aware Sparse Regularization for Network Pruning.
    """
    own = like(masks, scales)
    return sum_of(map_scored(lambda w, m: jnp.where(m, 0.0, magnitude(w)), scales, own))


def magnitude(x: jax.Array) -> jax.Array:
    """|x|, with gradient sign(x): that of `jnp.abs` is 1 at 0, and would wake what is pruned."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def sum_of(tree: Params) -> jax.Array:
    """Of all entries of all leaves, in float32."""
    return sum((jnp.sum(x, dtype=jnp.float32) for x in jax.tree.leaves(tree)), jnp.float32(0))
