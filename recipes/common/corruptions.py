"""Corruptions of images, each of five strengths: what a camera or a sensor does to test data.

All arithmetic is in integers, so every machine makes the same images to the bit. A corruption of an
image depends on the key and on the place of the image, and not on the batch that it is in.

The kinds are those of Hendrycks and Dietterich, 2019, Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations; the strengths are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

STRENGTHS = 5
LIGHT = 255  # the value of white

# (a key of the image, image int32 (h, w, c) in [0, 255], strength int32 in [0, 4]) -> the same type
Corruption = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def _of(values: Sequence[int], strength: jax.Array) -> jax.Array:
    """The value of a strength."""
    return jnp.array(values, jnp.int32)[strength]


def _share(size: int, percents: Sequence[int], strength: jax.Array) -> jax.Array:
    """A share of a size, at least 1, rounded."""
    return _of([max((percent * size + 50) // 100, 1) for percent in percents], strength)


def noise(key: jax.Array, image: jax.Array, strength: jax.Array) -> jax.Array:
    """Adds sums of 12 uniform bytes, almost normal, with a deviation of 20 to 120."""
    bits = jax.random.bits(key, (3, *image.shape), jnp.uint32)
    parts = [(bits >> shift) & 255 for shift in (0, 8, 16, 24)]
    total = sum(part.astype(jnp.int32).sum(0) for part in parts) - 12 * LIGHT // 2  # deviation 256
    return image + ((_of((20, 40, 60, 90, 120), strength) * total + 128) >> 8)


def blur(key: jax.Array, image: jax.Array, strength: jax.Array) -> jax.Array:
    """Averages neighbors by 1/4, 1/2, 1/4 along both axes, again and again.

    Of 28 pixels a side the deviation of the kernel is 1 to 3.3 pixels.
    """
    share = (image.shape[0] / 28) ** 2
    times = [max(i + 1, round(share * n)) for i, n in enumerate((2, 4, 8, 14, 22))]

    def once(_: jax.Array, x: jax.Array) -> jax.Array:
        for axis in (0, 1):
            pads = [(int(axis == i),) * 2 for i in range(3)]
            y, n = jnp.pad(x, pads, mode="edge"), x.shape[axis]
            a, b, c = (jax.lax.slice_in_dim(y, i, i + n, axis=axis) for i in range(3))
            x = (a + 2 * b + c + 2) >> 2
        return x

    return jax.lax.fori_loop(0, _of(times, strength), once, image)


def contrast(key: jax.Array, image: jax.Array, strength: jax.Array) -> jax.Array:
    """Moves all values towards the mean of the image; 62 % to 9 % of the distance is left."""
    mean = (image.sum() + image.size // 2) // image.size
    return mean + (((image - mean) * _of((160, 112, 72, 44, 24), strength) + 128) >> 8)


def brightness(key: jax.Array, image: jax.Array, strength: jax.Array) -> jax.Array:
    """Adds 25 to 128 to all values."""
    return image + _of((25, 51, 77, 102, 128), strength)


def pixelation(key: jax.Array, image: jax.Array, strength: jax.Array) -> jax.Array:
    """Averages cells; along a side there are 70 % to 20 % as many cells as pixels."""

    def cells(size: int) -> jax.Array:
        """Which pixels each cell has, int32 (cells, size)."""
        n = _share(size, (70, 50, 40, 30, 20), strength)
        pixels = jnp.arange(size, dtype=jnp.int32)
        return (pixels[:, None] == pixels[None] * n // size).astype(jnp.int32)

    rows, columns = map(cells, image.shape[:2])
    total = jnp.einsum("ai,bj,ijc->abc", rows, columns, image)
    count = jnp.maximum(jnp.outer(rows.sum(1), columns.sum(1)), 1)[..., None]
    mean = (2 * total + count) // (2 * count)
    return jnp.einsum("ai,bj,abc->ijc", rows, columns, mean)


def rotation(key: jax.Array, image: jax.Array, strength: jax.Array) -> jax.Array:
    """Turns by 10 to 60 degrees, to the left or to the right; what comes from outside is black."""
    h, w, _ = image.shape
    angles = [math.radians(degrees) for degrees in (10, 20, 30, 45, 60)]
    cos, sin = (_of([round(4096 * f(a)) for a in angles], strength) for f in (math.cos, math.sin))
    sin = jnp.where(jax.random.bits(key, (), jnp.uint8) & 1, sin, -sin)
    # distances to the middle in halves of a pixel, and then places in 1/8192 of one
    y = (2 * jnp.arange(h, dtype=jnp.int32) - (h - 1))[:, None]
    x = (2 * jnp.arange(w, dtype=jnp.int32) - (w - 1))[None]
    rows = cos * y + sin * x + 4096 * (h - 1)
    columns = cos * x - sin * y + 4096 * (w - 1)
    top, left = rows >> 13, columns >> 13
    down, right = (((place & 8191) >> 5)[..., None] for place in (rows, columns))  # of 256

    def at(i: jax.Array, j: jax.Array) -> jax.Array:
        inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
        return jnp.where(inside[..., None], image[i.clip(0, h - 1), j.clip(0, w - 1)], 0)

    above = at(top, left) * (256 - right) + at(top, left + 1) * right
    below = at(top + 1, left) * (256 - right) + at(top + 1, left + 1) * right
    return (above * (256 - down) + below * down + (1 << 15)) >> 16


def occlusion(key: jax.Array, image: jax.Array, strength: jax.Array) -> jax.Array:
    """Lays a gray rectangle over the image, 20 % to 60 % of each side, anywhere within."""
    where = jnp.array(True)
    bits = jax.random.bits(key, (2,), jnp.uint32)
    for axis, size in enumerate(image.shape[:2]):
        side = _share(size, (20, 30, 40, 50, 60), strength)
        first = (bits[axis] % (size - side + 1).astype(jnp.uint32)).astype(jnp.int32)
        place = jnp.arange(size, dtype=jnp.int32) - first
        inside = (place >= 0) & (place < side)
        where = where & jnp.expand_dims(inside, 1 - axis)
    return jnp.where(where[..., None], 128, image)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "brightness": brightness,
    "pixelation": pixelation,
    "rotation": rotation,
    "occlusion": occlusion,
}


@partial(jax.jit, static_argnums=0)
def _corrupted(name: str, keys: jax.Array, images: jax.Array, strength: jax.Array) -> jax.Array:
    one = lambda key, image: CORRUPTIONS[name](key, image.astype(jnp.int32), strength)
    return jax.vmap(one)(keys, images).clip(0, LIGHT).astype(jnp.uint8)


def corrupted(name: str, key: jax.Array, images: np.ndarray, strength: int) -> np.ndarray:
    """Images after a corruption, uint8 (n, h, w, c).

    Args:
      name: of `CORRUPTIONS`.
      key: a key of `jax.random`; image i has the key folded with i.
      images: uint8 (n, h, w, c), from 0 (black) to 255.
      strength: 1 to 5.

    Raises:
      ValueError: for another name or strength, and for images that are no bytes.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"unknown corruption '{name}'; choose one of {', '.join(CORRUPTIONS)}")
    if not 1 <= strength <= STRENGTHS:
        raise ValueError(f"the strength of a corruption is 1 to {STRENGTHS}, got {strength!r}")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            "corruptions take images uint8 (n, h, w, c), from 0 to 255; got "
            f"{images.dtype} {images.shape}. Round values and scale them first"
        )
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(images)))
    return np.asarray(_corrupted(name, keys, jnp.asarray(images), jnp.int32(strength - 1)))
