"""A vision transformer of the decoder's blocks: images (n, h, w, c) -> logits (n, classes).

An image is cut into square patches; each is one linear map of its pixels, plus a learned position.
The blocks are those of `recipes.common.models.decoder`, with attention to all patches. The mean
over patches gives the class.

References: Dosovitskiy et al., 2021, An Image is Worth 16x16 Words: Transformers for Image
Recognition at Scale; Beyer et al., 2022, Better plain ViT baselines for ImageNet-1k (the mean).
"""

from __future__ import annotations

import flax.linen as nn
import jax

from recipes.common.folder import RecipeError
from recipes.common.models.decoder import INITIAL, Block, Size

# with 10 classes: 0.07 M weights for digits, 0.42 M for CIFAR-10
SIZES = {
    "tiny": Size(layers=2, width=48, heads=3, queries=1, dims=16, hidden=128, causal=False),
    "small": Size(layers=4, width=96, heads=3, queries=1, dims=32, hidden=224, causal=False),
}


class ViT(nn.Module):
    """Images of at most 8 x 8 pixels have patches of 2 and the tiny size; others 4 and small."""

    classes: int
    width: float = 1.0  # a factor for heads, features and hidden units

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        tiny = max(images.shape[1:3]) <= 8
        size = widened(SIZES["tiny" if tiny else "small"], self.width)
        x = nn.Dense(size.width, name="patches")(patches(images, 2 if tiny else 4))
        x = x + self.param("positions", INITIAL, (1, *x.shape[1:]))
        for i in range(size.layers):
            x = Block(size, name=f"block_{i}")(x)
        return nn.Dense(self.classes, name="head")(nn.RMSNorm(name="norm")(x).mean(1))


def widened(size: Size, factor: float) -> Size:
    """A size with `factor` times the heads, and with features and hidden units in proportion."""
    heads = max(round(size.heads * factor), 1)
    ratio = heads / size.heads
    return size._replace(
        heads=heads, width=round(size.width * ratio), hidden=round(size.hidden * ratio)
    )


def patches(images: jax.Array, side: int) -> jax.Array:
    """(n, h, w, c) -> (n, patches, side * side * c), row after row of the image."""
    n, h, w, c = images.shape
    if h % side or w % side:
        raise RecipeError(
            f"model vit cuts images into patches of {side} x {side}; got images of {h} x {w}"
        )
    cut = images.reshape(n, h // side, side, w // side, side, c).swapaxes(2, 3)
    return cut.reshape(n, -1, side * side * c)
