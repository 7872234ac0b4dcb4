"""The product of training: of the blocks, or dense while there are many of them."""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxprune.fast.block_product.blocks import Blocks
from jaxprune.fast.block_product.gathered import by_columns
from jaxprune.fast.block_product.reference import reference

MOST = 0.42  # of the weights of the kernel in its slots


def by_share(x: jax.Array, blocks: Blocks, **how: Any) -> jax.Array:
    """`by_columns`, or `reference` while the slots hold more than 0.42 of the kernel's weights.

    Gradual pruning begins with all blocks. There a gather copies the inputs once for each block of
    outputs, and takes up to five times as long as the dense product of the kernel made whole again.
    On CPU, with its gradients, `by_columns` is the faster one below a share of 0.25 for blocks of
    16 x 16 and a batch of 128, and of 0.5 for blocks of 32 x 32.
    """
    share = math.prod(blocks.values.shape) / max(math.prod(blocks.shape), 1)
    return (reference if share > MOST else by_columns)(x, blocks, **how)
