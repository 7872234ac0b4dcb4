"""Masks at one bit a weight."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, Params
from jaxprune.trees import by_keys, map_scored, named_leaves, present_leaves, unlike, with_leaves


def pack(masks: Masks) -> Any:
    """Eight entries in a byte: each mask as uint8 (ceil(size / 8),), None as None.

    Raises:
      TypeError: for a leaf that is not bool; a gate is an ordinary array.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> mask = jnp.array([[True, False, True], [False, False, True]])
    >>> jp.export.pack({'kernel': mask, 'bias': None})
    {'bias': None, 'kernel': Array([164], dtype=uint8)}
    """
    for leaf_name, mask in present_leaves(masks):
        if mask.dtype != bool:
            raise TypeError(
                f"pack: masks are bool; that of '{leaf_name}' is {mask.dtype}. Threshold it first."
            )
    return map_scored(pack_array, masks)


def unpack(packed: Any, params: Params) -> Masks:
    """The masks that were packed, of the shapes of `params`: `unpack(pack(m), params)` is m.

    Args:
      packed: from `pack`, or from a file: the same tree of uint8 (ceil(size / 8),) or None.
      params: the params of the masks; shapes are enough (`jax.ShapeDtypeStruct`). Masks of a stack
        were packed with their seed axis, and need params that have it.

    Raises:
      ValueError: if paths or sizes do not fit; it names the leaf.
    """
    shapes = by_keys(params)

    def shape_of(leaf_name: str, keys: tuple[str, ...], bits: Any) -> tuple[int, ...]:
        if keys not in shapes:
            way_out = "Give the params that these masks belong to."
            raise unlike("unpack: the masks", extra=[(leaf_name, bits)], way_out=way_out)
        shape = np.shape(shapes[keys])
        size = int(np.prod(shape))
        if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
            raise ValueError(
                f"unpack: a mask of shape {shape} is packed in uint8 of shape ({-(-size // 8)},); "
                f"'{leaf_name}' is {bits.dtype} of shape {bits.shape}. Give the params that these "
                "masks belong to."
            )
        return shape

    leaves = [
        None if bits is None else unpack_array(bits, shape_of(leaf_name, keys, bits))
        for (leaf_name, bits), keys in zip(named_leaves(packed), by_keys(packed), strict=True)
    ]
    return with_leaves(packed, leaves)


def pack_array(mask: jax.Array) -> jax.Array:
    """A bool array of any shape -> uint8 (ceil(size / 8),)."""
    return jnp.packbits(jnp.ravel(mask))


def unpack_array(bits: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The bool array of this shape that `pack_array` packed."""
    return jnp.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
