"""LR2VQ: a codebook of short vectors, which a learned basis makes as long as the weights need."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Masks, Params, is_int
from jaxprune.masks import merged
from jaxprune.prunable.layout import Layout, as_matrix, from_matrix
from jaxprune.prunable.rules import kernels, layouts_of
from jaxprune.reparam import grid
from jaxprune.reparam.k_means import check_bits, check_rounds, k_means_of_vectors, nearest_vector
from jaxprune.reparam.reparameterization import Reparameterization, Size, check_learned, size_of
from jaxprune.trees import map_named


class LowRankVectors(NamedTuple):
    """What `lr2vq` trains. Leaves without a codebook are None in all fields but the first.

    Attributes:
      weights: the params. Leaves with a codebook have no gradient.
      values: float32 (2^bits, rank), the codebook.
      basis: float32 (m, rank): a vector of the codebook v is the m weights basis @ v.
      starts: float32 (2^bits, m): the first vectors of weights, which say which weights share a
        code. They have no gradient.
    """

    weights: Params
    values: Any
    basis: Any
    starts: Any


def lr2vq(
    bits: int = 8,
    m: int = 4,
    rank: int = 2,
    rounds: int = 25,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """Every m consecutive weights are basis @ values[code], with values of `rank` numbers.

        init      basis = the first `rank` principal directions of all groups of m weights
                  values = k-means of their coordinates
        forward   m weights -> basis @ values[code], 0 -> 0

    The codebook has 2^bits vectors. The size depends on m, and the error on `rank`: a low rank has
    an error of rank, a high rank has a larger error of clusters. The values and the basis learn;
    codes stay, and weights have zero gradients, so leave weight decay out. A pruned weight is
    exactly 0; it counts as 0 where others of its group are not, and groups of zeros take no part in
    k-means.

    The authors first train with the basis and without codes. The choices here are ours: groups are
    of consecutive inputs of one output, a window counted as inputs; each leaf has a codebook and a
    basis; principal directions in place of that training, and k-means from groups evenly spaced
    along the first of them, so that nothing is drawn.

    Args:
      bits: of each group, 1 to 8.
      m: weights in a group. It divides the inputs of each leaf, times its window.
      rank: of the vectors, 1 to m.
      rounds: of k-means, which compares all groups with all 2^bits vectors.
      prunable: which leaves have codebooks; all others are used as they are.

    Raises:
      TypeError: for a leaf of integers, or if `apply` gets another tree than `init` makes.
      ValueError: for numbers that can't be, if no leaf is chosen, if m does not divide the inputs
        of a leaf, or where its inputs can't be known.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> pairs = jp.reparam.lr2vq(1, m=2, rank=1)
    >>> learned = pairs.init({'kernel': jnp.array([[3., 6.], [4., 8.]])})
    >>> print(pairs.apply(learned)['kernel'].round())
    [[3. 6.]
     [4. 8.]]
    >>> jp.reparam.lr2vq_size(learned)
    Size(numbers=6, bits=130)

    Reference: Zhu et al., 2022, Learning Low-Rank Representations for Model Compression.
    """
    check_bits("lr2vq", bits)
    if not is_int(m, 1) or not is_int(rank, 1) or rank > m:
        raise ValueError(
            f"lr2vq: m is a number of weights, and rank is 1 to m; got m={m!r} and rank={rank!r}."
        )
    check_rounds("lr2vq", rounds)

    def init(params: Params) -> LowRankVectors:
        shapes = grid.shared("lr2vq", params, (), prunable)
        leaves = grid.leaves_of(params, shapes)
        layouts = layouts_of("lr2vq", leaves)

        def first(name: str, w: jax.Array) -> tuple[jax.Array, ...]:
            rows = _groups(name, w, layouts[name], m)
            return _first(rows, rank, 2**bits, rounds)

        parts = map_named(first, leaves)
        one = lambda i: jax.tree.map(lambda part: part[i], parts, is_leaf=_is_part)
        return LowRankVectors(params, one(0), one(1), one(2))

    def apply(learned: LowRankVectors, *, key: Any = None, step: Any = None) -> Params:
        weights, values, basis, starts = check_learned("lr2vq", LowRankVectors, learned)
        leaves = grid.leaves_of(weights, values)
        layouts = layouts_of("lr2vq", leaves)

        def used(name: str, w: jax.Array, value: Any, b: Any, start: Any) -> jax.Array:
            still, fixed = jax.lax.stop_gradient((w, start))
            rows = _groups(name, still, layouts[name], m)
            picked = _product(value, b.T)[nearest_vector(fixed, rows)]
            *rest, outputs = as_matrix(w, layouts[name]).shape
            matrix = picked.reshape(outputs, -1).T.reshape(*rest, outputs)
            x = from_matrix(matrix, layouts[name], w.shape)
            return jnp.where(still != 0, x, 0).astype(w.dtype)

        return merged(weights, map_named(used, leaves, values, basis, starts))

    return Reparameterization(init, apply)


def lr2vq_size(learned: LowRankVectors, masks: Masks = None) -> Size:
    """What a network of `lr2vq` takes: codes, codebooks, bases, masks, and all other leaves.

    A group of m weights has one code, even if some of them are pruned. Values and bases are
    float32, and a mask takes a bit a weight.

    Args:
      learned: what `lr2vq(...).init` makes; shapes are enough.
      masks: like the params, bool, None where never pruned; None: no weight is pruned.

    Raises:
      TypeError: if `lr2vq(...).init` did not make it.
    """
    weights, values, basis, _ = check_learned("lr2vq", LowRankVectors, learned)
    everything, floats = size_of(weights), size_of(grid.leaves_of(weights, values))
    table, mask = size_of((values, basis)), size_of(masks)
    k, m = jax.tree.leaves(values)[0].shape[-2], jax.tree.leaves(basis)[0].shape[-2]
    groups = floats.numbers // m
    return Size(
        everything.numbers - floats.numbers + groups + table.numbers,
        everything.bits - floats.bits + groups * (k - 1).bit_length() + table.bits + mask.bits,
    )


def _groups(name: str, w: jax.Array, layout: Layout, m: int) -> jax.Array:
    """All groups of m consecutive inputs (groups, m), float32, output by output."""
    *rest, outputs = as_matrix(w, layout).shape
    inputs = math.prod(rest)
    if inputs % m:
        raise ValueError(
            f"lr2vq: '{name}' of shape {w.shape} has {inputs} inputs, window included, and groups "
            f"of {m} do not divide them. Take another m, or leave it out with "
            "prunable=jp.matching(exclude=...)."
        )
    return as_matrix(w, layout).reshape(inputs, outputs).T.reshape(-1, m).astype(jnp.float32)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _first(rows: jax.Array, rank: int, k: int, rounds: int) -> tuple[jax.Array, ...]:
    """Values, basis and starts of groups (groups, m)."""
    n, m = rows.shape
    enough = jnp.pad(rows, ((0, max(m - n, 0)), (0, 0)))  # as many directions as weights
    basis = jnp.linalg.svd(enough, full_matrices=False)[2][:rank].T
    values = k_means_of_vectors(_product(rows, basis), k, rounds)
    return values, basis, _product(values, basis.T)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _is_part(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 3 and all(isinstance(a, jax.Array) for a in x)
