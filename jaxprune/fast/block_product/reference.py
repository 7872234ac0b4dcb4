"""The meaning of a product with blocks."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from jaxprune.fast.block_product.blocks import Blocks, to_kernel


def reference(x: jax.Array, blocks: Blocks, **how: Any) -> jax.Array:
    """`x @ to_kernel(blocks)`: (n, in) -> (n, out); `how` are arguments of `lax.dot_general`."""
    return lax.dot_general(x, to_kernel(blocks), (((1,), (0,)), ((), ())), **how)
