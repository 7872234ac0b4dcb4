"""A product with blocks as one small product for each block of outputs, for known indices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import is_known
from jaxprune.fast.block_product.blocks import Blocks, check_rows


def unrolled(x: jax.Array, blocks: Blocks, **how: Any) -> jax.Array:
    """(n, in) -> (n, out): static slices of the inputs, one product a block of outputs.

    It is the fastest forward pass at batches from 128. Its backward pass is slow, and the program
    has a product for each block of outputs.

    Raises:
      ValueError: if the indices are traced, or x is no (n, in).
    """
    check_rows("unrolled", x, blocks)
    if not is_known(blocks.inputs):
        raise ValueError(
            "unrolled: the indices of the blocks are traced, and static slices need numbers. Make "
            "the blocks outside of jit and close over them, or use by_rows or by_columns."
        )
    h, w = blocks.values.shape[2:]
    n = -(-blocks.shape[0] // h)
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % h)))
    found = []
    for values, inputs in zip(blocks.values, np.asarray(blocks.inputs), strict=True):
        used = int((inputs < n).sum())  # empty slots are last
        parts = [x[:, a * h : b * h] for a, b in runs(inputs[:used].tolist())]
        read = jnp.concatenate(parts, 1) if parts else x[:, :0]
        kernel = values[:used].reshape(used * h, w)
        found.append(lax.dot_general(read, kernel, (((1,), (0,)), ((), ())), **how))
    return jnp.concatenate(found, 1)[:, : blocks.shape[1]]


def runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending integers as ranges [a, b): [0, 1, 4] is (0, 2), (4, 5)."""
    cuts = [0, *(k for k, (a, b) in enumerate(pairwise(places), 1) if b != a + 1), len(places)]
    return [(places[a], places[b - 1] + 1) for a, b in pairwise(cuts) if a < b]
