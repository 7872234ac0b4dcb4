"""Codebooks: all weights near a value share it, and the shared values learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, Params, is_int
from jaxprune.masks import like, merged
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import kernels
from jaxprune.reparam import grid
from jaxprune.reparam.k_means import check_bits, from_rows, in_rows, k_means, nearest
from jaxprune.reparam.reparameterization import Reparameterization, Size, check_learned, size_of
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
    if not is_int(rounds, 0):
        raise ValueError(f"codebook: rounds is a whole number, at least 0; got {rounds!r}.")

    def init(params: Params) -> SharedValues:
        shapes = grid.shared("codebook", params, axes, prunable)

        def first(shape: jax.Array, w: jax.Array) -> jax.Array:
            rows = in_rows(w.astype(jnp.float32), shape.shape)
            centers = jax.vmap(lambda row: k_means(row, 2**bits, rounds))(rows)
            return centers.reshape(*shape.shape, 2**bits)

        values = map_scored(first, shapes, grid.leaves_of(params, shapes))
        return SharedValues(params, values, values if fixed else None)

    def used(value: jax.Array, w: jax.Array, code: jax.Array) -> jax.Array:
        shape = value.shape[:-1]
        rows = value.reshape(-1, value.shape[-1])
        picked = from_rows(jnp.take_along_axis(rows, in_rows(code, shape), -1), shape, w.shape)
        x = jnp.where(w != 0, picked, 0).astype(w.dtype)
        return x if fixed else x + (w - jax.lax.stop_gradient(w))

    def apply(learned: SharedValues, *, key: Any = None, step: Any = None) -> Params:
        weights, values, _ = check_learned("codebook", SharedValues, learned)
        leaves = grid.leaves_of(weights, values)
        return merged(weights, map_scored(used, values, leaves, _codes(learned)))

    return Reparameterization(init, apply)


def codes(learned: SharedValues) -> Any:
    """The code of each weight, uint8 like the weights; None where a leaf has no codebook.

    `values[code]` is the weight in use, but for pruned weights: theirs mean nothing.

    Raises:
      TypeError: if `codebook(...).init` did not make it.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> learned = jp.reparam.codebook(1).init({'kernel': jnp.array([[-2., -1., 3.]])})
    >>> jp.reparam.codes(learned)
    {'kernel': Array([[0, 0, 1]], dtype=uint8)}
    """
    return folded(_codes(check_learned("codebook", SharedValues, learned)))


def codebook_size(learned: SharedValues, masks: Masks = None) -> Size:
    """What a network with codebooks takes: codes, codebooks, masks, and all that has no codebook.

    A code has the bits of its codebook, a value is a float32, and a mask takes a bit a weight; only
    kept weights have a code. Coded by their frequencies, codes and masks take less:
    `coded_size(codes(learned), masks)`.

    Args:
      learned: what `codebook(...).init` makes; shapes are enough without masks.
      masks: like the params, bool, None where never pruned; None: no weight is pruned.

    Raises:
      TypeError: if `codebook(...).init` did not make it.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> learned = jp.reparam.codebook(2).init({'kernel': jnp.ones((8, 4)), 'bias': jnp.ones(4)})
    >>> jp.reparam.codebook_size(learned)
    Size(numbers=40, bits=320)
    """
    weights, values, _ = check_learned("codebook", SharedValues, learned)
    leaves, table = grid.leaves_of(weights, values), size_of(values)
    pruned = 0
    if masks is not None:
        here = jax.tree.leaves(grid.leaves_of(like(masks, weights), values))
        pruned = sum(int(np.sum(~np.asarray(mask))) for mask in here)
    everything, floats = size_of(weights), size_of(leaves)
    width = (jax.tree.leaves(values)[0].shape[-1] - 1).bit_length()
    coded = width * (floats.numbers - pruned)
    return Size(
        everything.numbers - pruned + table.numbers,
        everything.bits - floats.bits + coded + table.bits + size_of(masks).bits,
    )


def _codes(learned: SharedValues) -> Any:
    """`codes`, with layers in place of stacks."""
    weights, values, starts = learned

    def of(centers: jax.Array, w: jax.Array) -> jax.Array:
        shape = centers.shape[:-1]
        rows = in_rows(w.astype(jnp.float32), shape)
        table = centers.reshape(-1, centers.shape[-1])
        return from_rows(jax.vmap(nearest)(table, rows), shape, w.shape)

    centers = jax.lax.stop_gradient(values if starts is None else starts)
    return map_scored(of, centers, grid.leaves_of(weights, values))
