"""k-means of weights, or of groups of weights, that share a codebook, without pruned weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import is_int

BITS = range(1, 9)


def check_bits(what: str, bits: Any) -> None:
    """Raises ValueError unless `bits` is an int from 1 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or bits not in BITS:
        raise ValueError(
            f"{what}: bits is an int from {BITS[0]} to {BITS[-1]}, for a codebook of 2 to 256 "
            f"values; got {bits!r}. For more bits take a uniform grid: reparam.fake_quantization."
        )


def check_rounds(what: str, rounds: Any) -> None:
    """Raises ValueError unless `rounds` is an int of at least 0."""
    if not is_int(rounds, 0):
        raise ValueError(f"{what}: rounds is a whole number, at least 0; got {rounds!r}.")


def in_rows(w: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The weights (codebooks, n): a row for each entry of `shape`, in its order.

    Args:
      shape: of the rank of `w`, with 1 along the axes whose entries share a codebook.
    """
    shared = [axis for axis, n in enumerate(shape) if n == 1]
    apart = [axis for axis, n in enumerate(shape) if n != 1]
    return w.transpose(*apart, *shared).reshape(int(np.prod(shape)), -1)


def from_rows(rows: jax.Array, shape: tuple[int, ...], of: tuple[int, ...]) -> jax.Array:
    """The inverse of `in_rows`, for an array of the shape `of`."""
    order = [axis for axis, n in enumerate(shape) if n != 1]
    order += [axis for axis, n in enumerate(shape) if n == 1]
    return rows.reshape([of[axis] for axis in order]).transpose(*np.argsort(order))


@partial(jax.jit, static_argnums=(1, 2, 3))
def centers_of(w: jax.Array, shape: tuple[int, ...], k: int, rounds: int) -> jax.Array:
    """The centers (*shape, k) of the weights of each codebook, float32."""
    rows = in_rows(w.astype(jnp.float32), shape)
    return jax.vmap(lambda row: k_means(row, k, rounds))(rows).reshape(*shape, k)


@jax.jit
def codes_of(centers: jax.Array, w: jax.Array) -> jax.Array:
    """The codes of weights, uint8 like `w`: each has the nearest of its centers (*shape, k)."""
    shape, table = centers.shape[:-1], centers.reshape(-1, centers.shape[-1])
    rows = in_rows(w.astype(jnp.float32), shape)
    return from_rows(jax.vmap(nearest)(table, rows), shape, w.shape)


@jax.jit
def values_of(values: jax.Array, code: jax.Array) -> jax.Array:
    """The values (*shape, k) of codes, like `code`."""
    shape, table = values.shape[:-1], values.reshape(-1, values.shape[-1])
    return from_rows(jnp.take_along_axis(table, in_rows(code, shape), -1), shape, code.shape)


def k_means(w: jax.Array, k: int, rounds: int) -> jax.Array:
    """The centers (k,) of weights (n,), ascending; zeros take no part.

    The first centers are evenly spaced from the smallest to the largest weight, so that nothing is
    drawn. A center that no weight is near stays. Without any weight all centers are 0.
    """
    alive = w != 0
    low = jnp.min(w, where=alive, initial=jnp.inf)
    high = jnp.max(w, where=alive, initial=-jnp.inf)
    part = jnp.arange(k, dtype=w.dtype) / (k - 1)
    first = jnp.where(alive.any(), low * (1 - part) + high * part, 0)

    def nearer(_: Any, centers: jax.Array) -> jax.Array:
        code = nearest(centers, w)
        count = jax.ops.segment_sum(alive.astype(w.dtype), code, k)
        total = jax.ops.segment_sum(w, code, k)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), centers)

    return jax.lax.fori_loop(0, rounds, nearer, first)


def nearest(centers: jax.Array, w: jax.Array) -> jax.Array:
    """Which of the centers (k,), in any order, each weight (n,) is nearest to: uint8 (n,)."""
    order = jnp.argsort(centers)
    ascending = centers[order]
    place = jnp.searchsorted((ascending[1:] + ascending[:-1]) / 2, w)
    return order[place].astype(jnp.uint8)


@partial(jax.jit, static_argnums=(1, 2))
def k_means_of_vectors(x: jax.Array, k: int, rounds: int) -> jax.Array:
    """The centers (k, d) of vectors (n, d); vectors of zeros take no part.

    The first centers are vectors evenly spaced in the order of their first entries, so that nothing
    is drawn. A center that no vector is near stays. Without any vector all centers are 0.
    """
    alive = (x != 0).any(-1)
    order = jnp.argsort(jnp.where(alive, x[:, 0], jnp.inf))
    last = jnp.maximum(alive.sum() - 1, 0)
    places = jnp.round(jnp.arange(k) * (last / (k - 1))).astype(jnp.int32)

    def nearer(_: Any, centers: jax.Array) -> jax.Array:
        code = nearest_vector(centers, x)
        count = jax.ops.segment_sum(alive.astype(x.dtype), code, k)[:, None]
        total = jax.ops.segment_sum(x, code, k)
        return jnp.where(count > 0, total / jnp.maximum(count, 1), centers)

    return jax.lax.fori_loop(0, rounds, nearer, x[order[places]])


@jax.jit
def nearest_vector(centers: jax.Array, x: jax.Array) -> jax.Array:
    """Which of the centers (k, d) each vector (n, d) is nearest to: uint8 (n,)."""
    product = jnp.matmul(x, centers.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin((centers**2).sum(-1)[None] - 2 * product, -1).astype(jnp.uint8)
