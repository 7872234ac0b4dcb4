"""The forms: blocks, single weights, and a kernel cut to the inputs and outputs in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.export.sparse import TransposedBCSR, sparse_matmul
from jaxprune.fast.block_product import Blocks, by_columns, by_rows, unrolled
from jaxprune.fast.block_product.unrolled import runs
from jaxprune.fast.convolution import Image

Places = tuple[tuple[int, ...], ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ByRows:
    """Blocks that `by_rows` multiplies."""

    blocks: Blocks

    def multiply(self, x: jax.Array, **how: Any) -> jax.Array:
        return by_rows(x, self.blocks, **how)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ByColumns:
    """Blocks that `by_columns` multiplies."""

    blocks: Blocks

    def multiply(self, x: jax.Array, **how: Any) -> jax.Array:
        return by_columns(x, self.blocks, **how)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Unrolled:
    """Blocks that `unrolled` multiplies: their places are static."""

    values: jax.Array
    places: Places = field(metadata={"static": True})
    shape: tuple[int, int] = field(metadata={"static": True})

    def multiply(self, x: jax.Array, **how: Any) -> jax.Array:
        places: Any = np.asarray(self.places, np.int32).reshape(self.values.shape[:2])
        return unrolled(x, Blocks(self.values, places, self.shape), **how)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Single:
    """Single weights by outputs; the precision of the product is that of JAX's BCSR."""

    kernel: TransposedBCSR

    def multiply(self, x: jax.Array, **how: Any) -> jax.Array:
        return sparse_matmul(x, self.kernel)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cut:
    """The kernel without the inputs that no output reads and the outputs that read nothing."""

    values: jax.Array
    rows: tuple[int, ...] = field(metadata={"static": True})
    columns: tuple[int, ...] = field(metadata={"static": True})
    shape: tuple[int, int] = field(metadata={"static": True})

    def multiply(self, x: jax.Array, **how: Any) -> jax.Array:
        x = x if len(self.rows) == self.shape[0] else taken(x, self.rows)
        y = lax.dot_general(x, self.values, (((1,), (0,)), ((), ())), **how)
        if len(self.columns) == self.shape[1]:
            return y
        full = jnp.zeros((len(y), self.shape[1]), y.dtype)
        return full.at[:, np.asarray(self.columns, np.int32)].set(y, unique_indices=True)


# --- of convolutions with a window ----------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shifted:
    """Blocks of a kernel (window * channels, out); each block of outputs reads shifted images.

    Their places are static. Only the parts of the image are copied that a block of outputs reads.
    """

    values: jax.Array
    places: Places = field(metadata={"static": True})
    shape: tuple[int, int] = field(metadata={"static": True})

    def convolve(self, image: Image, **how: Any) -> jax.Array:
        found = []
        h, w = self.values.shape[2:]
        for values, inputs in zip(self.values, self.places, strict=True):
            used = [i for i in inputs if i * h < self.shape[0]]  # empty slots are last
            ranges = [(a * h, min(b * h, self.shape[0])) for a, b in runs(used)]
            read = image.features(ranges)
            kernel = values[: len(used)].reshape(-1, w)[: read.shape[1]]
            found.append(lax.dot_general(read, kernel, (((1,), (0,)), ((), ())), **how))
        return jnp.concatenate(found, 1)[:, : self.shape[1]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CutWindow:
    """A kernel (window..., channels, out) without channels and outputs that nothing uses."""

    values: jax.Array
    channels: tuple[int, ...] = field(metadata={"static": True})
    columns: tuple[int, ...] = field(metadata={"static": True})
    outputs: int = field(metadata={"static": True})

    def convolve(self, image: Image, **how: Any) -> jax.Array:
        x = image.x[..., np.asarray(self.channels, np.int32)]
        y = image.dense(x, self.values, **how)
        full = jnp.zeros((*y.shape[:-1], self.outputs), y.dtype)
        return full.at[..., np.asarray(self.columns, np.int32)].set(y, unique_indices=True)


def taken(x: jax.Array, columns: Sequence[int]) -> jax.Array:
    """Columns of x, as slices where they are next to each other."""
    parts = runs(columns)
    if not parts or len(parts) > len(columns) // 8:
        return x[:, np.asarray(columns, np.int32)]
    return jnp.concatenate([x[:, a:b] for a, b in parts], 1)
