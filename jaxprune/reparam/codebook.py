"""Codebooks: all weights near a value share it, and the shared values learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam import grid
from jaxprune.reparam.k_means import centers_of, check_bits, check_rounds, codes_of, values_of
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import map_scored


class SharedValues(NamedTuple):
    """What `codebook` trains.

    Attributes:
      weights: the params.
      values: float32, the shape of the codebooks and one more axis of 2^bits values; None where a
        leaf has no codebook.
      starts: like `values`: the centers of k-means. They say which weights share a value, and have
        no gradient. None in place of the tree if weights may change their code.
    """

    weights: Params
    values: Any
    starts: Any


def codebook(
    bits: int = 4,
    axes: grid.Axes = (),
    fixed: bool = True,
    rounds: int = 50,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """Each weight is one of 2^bits values of its codebook, and the values learn.

        init       values = k-means of the weights that are not 0, from evenly spaced centers
        forward    w -> values[code of w], 0 -> 0
        backward   the gradient of a value is the sum of the gradients of its weights

    A pruned weight is exactly 0, and 0 is no part of the codebook: prune first, and its mask says
    where the zeros are. `fixed`: a weight has its first code for good, and the weights have zero
    gradients, as by the authors. Weight decay would still move them, so leave it out. Not `fixed`:
    a weight takes the nearest value in every forward pass, and its gradient passes unchanged
    (straight through).

    `apply(init(params))` without training is quantization after training. All computation is in
    float, and makes nothing faster. Masks of `sparsify` are of `weights`; leave the values out of
    them, `matching(exclude=("values/*", "starts/*"))`.

    Args:
      bits: of each weight, 1 to 8.
      axes: which weights share a codebook, as in `fake_quantization`. (): all of a leaf.
      fixed: whether the codes stay.
      rounds: of k-means.
      prunable: which leaves have codebooks; all others are used as they are.

    Raises:
      TypeError: for a leaf of integers, or if `apply` gets another tree than `init` makes.
      ValueError: for numbers that can't be, if no leaf is chosen, or a leaf has no such axis.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> one_bit = jp.reparam.codebook(1)
    >>> learned = one_bit.init({'kernel': jnp.array([[-2.], [-1.], [0.], [3.]])})
    >>> one_bit.apply(learned)['kernel'].ravel()
    Array([-1.5, -1.5,  0. ,  3. ], dtype=float32)
    >>> slope = jax.grad(lambda learned: one_bit.apply(learned)['kernel'].sum())(learned)
    >>> slope.values['kernel'].ravel()
    Array([2., 1.], dtype=float32)

    Reference: Han et al., 2016, Deep Compression: Compressing Deep Neural Networks with Pruning,
    Trained Quantization and Huffman Coding.
    """
    check_bits("codebook", bits)
    check_rounds("codebook", rounds)

    def init(params: Params) -> SharedValues:
        shapes = grid.shared("codebook", params, axes, prunable)
        first = lambda shape, w: centers_of(w, shape.shape, 2**bits, rounds)
        values = map_scored(first, shapes, grid.leaves_of(params, shapes))
        return SharedValues(params, values, values if fixed else None)

    def used(value: jax.Array, w: jax.Array, code: jax.Array) -> jax.Array:
        x = jnp.where(w != 0, values_of(value, code), 0).astype(w.dtype)
        return x if fixed else x + (w - jax.lax.stop_gradient(w))

    def apply(learned: SharedValues, *, key: Any = None, step: Any = None) -> Params:
        weights, values, _ = check_learned("codebook", SharedValues, learned)
        leaves = grid.leaves_of(weights, values)
        return merged(weights, map_scored(used, values, leaves, nearest_codes(learned)))

    return Reparameterization(init, apply)


def nearest_codes(learned: SharedValues) -> Any:
    """`codes`, with layers in place of stacks."""
    weights, values, starts = learned
    centers = jax.lax.stop_gradient(values if starts is None else starts)
    return map_scored(codes_of, centers, grid.leaves_of(weights, values))
