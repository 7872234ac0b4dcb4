"""Differentiable quantization: the levels of a layer learn, for weights scaled bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam import grid
from jaxprune.reparam.k_means import check_bits, nearest
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import map_scored


class Levels(NamedTuple):
    """What `learned_levels` trains.

    Attributes:
      weights: the params. Leaves with levels have no gradient.
      levels: float32 (2^bits,) for each leaf, in [-1, 1] at first; None where a leaf has none.
    """

    weights: Params
    levels: Any


def learned_levels(
    bits: int = 4,
    axes: grid.Axes = -1,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """Each weight takes the nearest of 2^bits levels of its layer, and the levels learn.

        scale      the largest |w| of a bucket
        forward    w -> scale level[nearest to w / scale], 0 -> 0
        backward   the gradient of a level is the sum of scale times the gradients of its weights

    The levels begin at quantiles of all w / scale of a leaf that are not zero, so that as many
    weights take each. The weights have zero gradients, as by the authors; the nearest level may
    become another one as the levels move. A pruned weight is exactly 0. Buckets are outputs, where
    the authors take 256 consecutive weights. Masks of `sparsify` are of `weights`; leave the levels
    out, `matching(exclude="levels/*")`.

    Args:
      bits: of each weight, 1 to 8.
      axes: the buckets: along these axes every entry has its scale, as in `fake_quantization`.
      prunable: which leaves have levels; all others are used as they are.

    Raises:
      TypeError: for a leaf of integers, or if `apply` gets another tree than `init` makes.
      ValueError: for bits that can't be, if no leaf is chosen, or a leaf has no such axis.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> one_bit = jp.reparam.learned_levels(1, axes=())
    >>> learned = one_bit.init({'kernel': jnp.array([[-4.], [-2.], [0.], [2.], [4.]])})
    >>> learned.levels['kernel']
    Array([-0.625,  0.625], dtype=float32)
    >>> one_bit.apply(learned)['kernel'].ravel()
    Array([-2.5, -2.5,  0. ,  2.5,  2.5], dtype=float32)
    >>> jax.grad(lambda l: one_bit.apply(l)['kernel'][-1, 0])(learned).levels['kernel']
    Array([0., 4.], dtype=float32)

    Reference: Polino, Pascanu and Alistarh, 2018, Model Compression via Distillation and
    Quantization.
    """
    check_bits("learned_levels", bits)
    # one in the middle of each of 2^bits parts
    quantiles = (jnp.arange(2**bits) + 0.5) / 2**bits

    def scaled(shape: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        still = jax.lax.stop_gradient(w).astype(jnp.float32)
        scale = jnp.max(jnp.abs(still), grid.over(shape), keepdims=True)
        return scale, still / jnp.where(scale > 0, scale, 1)

    def init(params: Params) -> Levels:
        shapes = grid.shared("learned_levels", params, axes, prunable)

        def first(shape: jax.Array, w: jax.Array) -> jax.Array:
            _, x = scaled(shape, w)
            levels = jnp.nanquantile(jnp.where(x != 0, x, jnp.nan), quantiles)
            return jnp.where(jnp.isnan(levels), 0.0, levels)  # where all weights are zero

        return Levels(params, map_scored(first, shapes, grid.leaves_of(params, shapes)))

    def used(shape: jax.Array, w: jax.Array, levels: jax.Array) -> jax.Array:
        scale, x = scaled(shape, w)
        code = nearest(jax.lax.stop_gradient(levels), x.ravel()).reshape(x.shape)
        return jnp.where(x != 0, scale * levels[code], 0).astype(w.dtype)

    def apply(learned: Levels, *, key: Any = None, step: Any = None) -> Params:
        weights, levels = check_learned("learned_levels", Levels, learned)
        shapes = grid.shared("learned_levels", weights, axes, prunable)
        leaves = grid.leaves_of(weights, shapes)
        return merged(weights, map_scored(used, shapes, leaves, levels))

    return Reparameterization(init, apply)
