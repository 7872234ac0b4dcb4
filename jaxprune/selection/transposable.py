"""Masks that are N:M along the inputs and along the outputs."""

from __future__ import annotations

from itertools import combinations, product
from math import comb
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LARGEST = 4  # blocks up to this size are solved exactly: they have at most 90 masks


def transposable(scores: jax.Array, n: int, m: int) -> jax.Array:
    """Of each block of m x m entries, n in each row and in each column, with a large sum.

    The sum is the largest up to m = 4. Above it is greedy: the largest entry whose row and column
    have room goes first; exchanges then fill the rows that are not full.

    Args:
      scores: (..., rows, columns), both multiples of m. As few of -inf, and as many of +inf and
        NaN, as can be.

    Returns:
      bool, of the shape of `scores`.

    Reference: Hubara et al., 2021, Accelerated Sparse Neural Training: A Provable and Efficient
    Method to Find N:M Transposable Masks.
    """
    *lead, rows, columns = scores.shape
    tiles = scores.astype(jnp.float32).reshape(*lead, rows // m, m, columns // m, m)
    blocks = _finite(jnp.moveaxis(tiles, -3, -2).reshape(-1, m, m))
    if m <= LARGEST:
        masks = jnp.asarray(_every_mask(n, m))
        sums = jnp.einsum("bij,kij->bk", blocks, masks.astype(jnp.float32), precision="highest")
        kept = masks[sums.argmax(1)]
    else:
        kept = jax.vmap(lambda block: _filled(block, _greedy(block, n), n))(blocks)
    kept = kept.reshape(*lead, rows // m, columns // m, m, m)
    return jnp.moveaxis(kept, -2, -3).reshape(scores.shape)


def _finite(blocks: jax.Array) -> jax.Array:
    """The blocks (blocks, m, m) with infinities as far off as no sum of the others reaches."""
    known = jnp.isfinite(blocks)
    low = jnp.where(known, blocks, jnp.inf).min((1, 2), keepdims=True)
    high = jnp.where(known, blocks, -jnp.inf).max((1, 2), keepdims=True)
    low, high = (jnp.where(jnp.isfinite(x), x, 0.0) for x in (low, high))
    far = (high - low + 1) * blocks[0].size
    finite = jnp.where(jnp.isneginf(blocks), low - far, high + far)
    return jnp.where(known, blocks, finite)


def _every_mask(n: int, m: int) -> np.ndarray:
    """Bool (masks, m, m): all with n in each row and in each column."""
    rows = [[j in chosen for j in range(m)] for chosen in combinations(range(m), n)]
    assert comb(m, n) ** m <= 10_000
    every = np.array(list(product(rows, repeat=m)))
    return every[(every.sum(1) == n).all(1)]


def _greedy(block: jax.Array, n: int) -> jax.Array:
    """The mask of one block: the largest first, where its row and its column have room."""
    m = len(block)
    order = jnp.argsort(-block.ravel(), stable=True)

    def add(k: Any, mask: jax.Array) -> jax.Array:
        i, j = order[k] // m, order[k] % m
        return mask.at[i, j].set((mask[i].sum() < n) & (mask[:, j].sum() < n))

    return lax.fori_loop(0, m * m, add, jnp.zeros((m, m), bool))


def _filled(block: jax.Array, mask: jax.Array, n: int) -> jax.Array:
    """The mask with n in each row and column.

    A row r and a column c that have room meet in an entry that is already True. Then there is a
    True entry (i, j) for which (i, c) and (r, j) are False: they replace it, the best of them.
    """

    def has_room(mask: jax.Array) -> jax.Array:
        return mask.sum() < n * len(block)

    def exchange(mask: jax.Array) -> jax.Array:
        r, c = jnp.argmin(mask.sum(1)), jnp.argmin(mask.sum(0))
        gain = block[r][None, :] + block[:, c][:, None] - block
        allowed = mask & ~mask[r][None, :] & ~mask[:, c][:, None]
        i, j = jnp.divmod(jnp.where(allowed, gain, -jnp.inf).argmax(), len(block))
        return mask.at[i, j].set(False).at[i, c].set(True).at[r, j].set(True)

    return lax.while_loop(has_room, exchange, mask)
