"""N:M sparse weights without their zeros: the kept values, and their places in the groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import is_known

_BYTE = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Compressed:
    """An N:M sparse array: n of every m entries along an axis, with their places.

    Attributes:
      values: (..., groups, n), of the dtype of the weights, in the order of their places; `...` are
        the other axes.
      metadata: uint8, the places, in [0, m), the first one in the lowest bits; b bits each, where b
        is the smallest of 1, 2, 4 and 8 that holds m - 1; flat, in the order of `values`.
      n, m, axis, shape: the arguments, and the shape of the weights; static.

    In bfloat16, 2:4 takes 9 of 16 bits. A library with kernels for such arrays has another layout
    for the metadata: give it `decompress_nm`, or the values and places.
    """

    values: jax.Array
    metadata: jax.Array
    n: int = field(metadata={"static": True})
    m: int = field(metadata={"static": True})
    axis: int = field(metadata={"static": True})
    shape: tuple[int, ...] = field(metadata={"static": True})


def compress_nm(
    weights: jax.Array, mask: jax.Array, n: int, m: int, axis: int | None = None
) -> Compressed:
    """The kept weights of an N:M mask, such as `select(..., nm(n, m, axis))` makes.

    Args:
      weights: any shape and dtype.
      mask: bool, of that shape: n of every m consecutive entries along `axis` are True. A weight
        that is 0 is kept if its mask is True.
      n, m: as in `nm`.
      axis: of the inputs; None for -2, as in matrices and convolutions. For query, key and value of
        attention it is 0. Where two axes are inputs, as in its `out`, reshape both arrays first.

    Raises:
      ValueError: if shapes differ, the axis is not divisible by m, a group keeps another number, or
        an array of three axes comes without `axis`.
    """
    if axis is None and np.ndim(weights) == 3:
        raise ValueError(
            f"compress_nm: weights of shape {np.shape(weights)} may have heads or a window. Say "
            "which axis the inputs are: axis=0 for query, key and value of attention, -2 for a "
            "convolution; (heads, features, outputs) reshape to (heads * features, outputs)."
        )
    axis = -2 if axis is None else axis
    shape = np.shape(weights)
    if np.shape(mask) != shape or mask.dtype != bool:
        raise ValueError(
            f"compress_nm: the mask must be bool of shape {shape}, as the weights; got "
            f"{mask.dtype} of shape {np.shape(mask)}."
        )
    if not (0 < n < m) or not -len(shape) <= axis < len(shape) or shape[axis] % m:
        raise ValueError(
            f"compress_nm: {n}:{m} along axis {axis} does not fit shape {shape}: 0 < n < m must "
            "hold, and m divide the axis."
        )
    groups = _grouped(mask, m, axis)
    if is_known(mask):
        counts = np.unique(np.asarray(groups).sum(-1))
        if counts.size and (counts != n).any():
            raise ValueError(
                f"compress_nm: this mask is not {n}:{m} along axis {axis}: groups keep "
                f"{', '.join(map(str, counts))} entries. "
                f"Make it with pattern=nm({n}, {m}, {axis}), or name the axis of its inputs."
            )
    places = jnp.argsort(~groups, axis=-1, stable=True)[..., :n]  # the kept ones first, in order
    values = jnp.take_along_axis(_grouped(weights, m, axis), places, axis=-1)
    return Compressed(values, _packed(places, m), n, m, axis, shape)


def decompress_nm(compressed: Compressed) -> jax.Array:
    """The weights with zeros where they were masked: bit for bit `where(mask, weights, 0)`."""
    c = compressed
    there = jax.nn.one_hot(_unpacked(c.metadata, c.m, c.values.shape), c.m, dtype=bool)
    spread = jnp.where(there, c.values[..., None], jnp.zeros((), c.values.dtype))
    is_complex = jnp.issubdtype(c.values.dtype, jnp.complexfloating)
    parts = (spread.real, spread.imag) if is_complex else (spread,)
    joined = [_only_one(part) for part in parts]
    full = jax.lax.complex(*joined) if is_complex else joined[0]
    others = np.delete(c.shape, c.axis % len(c.shape))
    return jnp.moveaxis(full.reshape(*others, c.shape[c.axis]), -1, c.axis)


def _grouped(x: jax.Array, m: int, axis: int) -> jax.Array:
    """(..., groups, m)."""
    last = jnp.moveaxis(x, axis, -1)
    return last.reshape(*last.shape[:-1], -1, m)


def _bits(m: int) -> int:
    return next(b for b in (1, 2, 4, 8) if m <= 2**b)


def _packed(places: jax.Array, m: int) -> jax.Array:
    per_byte = _BYTE // _bits(m)
    flat = places.astype(jnp.uint8).reshape(-1)
    flat = jnp.pad(flat, (0, -flat.size % per_byte)).reshape(-1, per_byte)
    shifts = jnp.arange(per_byte, dtype=jnp.uint8) * jnp.uint8(_bits(m))
    return jnp.sum(flat << shifts[None], axis=1, dtype=jnp.uint8)


def _unpacked(metadata: jax.Array, m: int, shape: tuple[int, ...]) -> jax.Array:
    bits = _bits(m)
    shifts = jnp.arange(_BYTE // bits, dtype=jnp.uint8) * jnp.uint8(bits)
    places = (metadata[:, None] >> shifts[None]) & jnp.uint8(2**bits - 1)
    return places.reshape(-1)[: int(np.prod(shape))].reshape(shape)


def _only_one(spread: jax.Array) -> jax.Array:
    """The one entry on the second last axis that is not zero."""
    # a sum would be exact too, but integers keep the sign of zero
    full = jax.lax.reduce_or(_as_integers(spread), axes=(spread.ndim - 2,))
    return jax.lax.bitcast_convert_type(full, spread.dtype)


def _as_integers(x: jax.Array) -> Any:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, unsigned)
