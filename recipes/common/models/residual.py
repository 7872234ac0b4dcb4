"""A small residual network whose blocks are all alike: any of them can go.

Reference: He et al., 2016, Identity Mappings in Deep Residual Networks (norms before the layers).
"""

from __future__ import annotations

import flax.linen as nn
import jax

WIDTH = 64


class Residual(nn.Module):
    """Images (n, h, w, c) -> logits (n, classes); blocks are called block_0, block_1, ..."""

    blocks: int
    width: int
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(self.width, name="pixels")(images.reshape(images.shape[0], -1))
        for i in range(self.blocks):
            x = Block(self.width, name=f"block_{i}")(x)
        return nn.Dense(self.classes, name="head")(nn.RMSNorm(name="norm")(x))


class Block(nn.Module):
    """x + f(x), f two fully connected layers after a norm."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(nn.Dense(self.width, name="up")(nn.RMSNorm(name="norm")(x)))
        return x + nn.Dense(x.shape[-1], name="down")(y)
