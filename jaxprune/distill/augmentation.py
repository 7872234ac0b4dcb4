"""DSA: augmentation that is differentiable, and the same for real and synthetic images."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates

Transform = Callable[[jax.Array, jax.Array], jax.Array]  # (key, images (n, h, w, c)) -> images


def siamese(*transforms: Transform) -> Transform:
    """`augment(key, images)`: draws one of the transforms, and does the same to every image.

    The same key makes the same draw for any images, so that the losses of `jaxprune.distill` can
    do to the synthetic images what was done to the real ones.

    Args:
      *transforms: `(key, images) -> images`, drawn with equal probability. By default `color(),
        crop(), cutout(), scale(), rotate()`: no `flip()`, which makes other symbols of digits.

    Raises:
      ValueError: (when called) if images are not (n, height, width, channels), floating point.

    Reference: Zhao and Bilen, 2021, Dataset Condensation with Differentiable Siamese Augmentation.
    """
    chosen = transforms or (color(), crop(), cutout(), scale(), rotate())

    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        if jnp.ndim(images) != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                "siamese: images are (n, height, width, channels), floating point; got "
                f"{images.dtype}{images.shape}."
            )
        which, draw = jax.random.split(key)
        index = jax.random.randint(which, (), 0, len(chosen))
        return lax.switch(index, chosen, draw, images).astype(images.dtype)

    return augment


def flip() -> Transform:
    """Mirrored left to right, with probability 1/2."""

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key), images[:, :, ::-1], images)

    return transform


def crop(padding: float = 1 / 8) -> Transform:
    """Moved by up to `padding` of its size in each direction; what comes in is 0."""

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        _, h, w, _ = images.shape
        high, wide = round(h * padding), round(w * padding)
        padded = jnp.pad(images, ((0, 0), (high, high), (wide, wide), (0, 0)))
        row = jax.random.randint(jax.random.fold_in(key, 0), (), 0, 2 * high + 1)
        column = jax.random.randint(jax.random.fold_in(key, 1), (), 0, 2 * wide + 1)
        return lax.dynamic_slice(padded, (0, row, column, 0), images.shape)

    return transform


def cutout(size: float = 1 / 2) -> Transform:
    """A rectangle of `size` of the height and width, at a random center, becomes 0."""

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        _, h, w, _ = images.shape

        def outside(key: jax.Array, length: int) -> jax.Array:
            side = round(length * size)
            first = jax.random.randint(key, (), 0, length) - side // 2
            place = jnp.arange(length)
            return (place < first) | (place >= first + side)

        rows = outside(jax.random.fold_in(key, 0), h)
        columns = outside(jax.random.fold_in(key, 1), w)
        return jnp.where((rows[:, None] | columns[None, :])[None, ..., None], images, 0)

    return transform


def scale(ratio: float = 1.2) -> Transform:
    """Height and width each scaled by a factor in [1 / ratio, ratio], about the center."""

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        factors = jax.random.uniform(key, (2,), images.dtype, 1 / ratio, ratio)
        return _resampled(images, jnp.diag(factors))

    return transform


def rotate(degrees: float = 15.0) -> Transform:
    """Turned about the center by an angle in [-degrees, degrees]."""

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        most = jnp.deg2rad(degrees)
        angle = jax.random.uniform(key, (), images.dtype, -most, most)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return _resampled(images, jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])]))

    return transform


def color(brightness: float = 1.0, saturation: float = 2.0, contrast: float = 0.5) -> Transform:
    """Brightness, then saturation, then contrast, each drawn once for all images.

    Brightness adds a number in `brightness` * [-1/2, 1/2]; saturation multiplies the distance to
    the mean over channels by a number in [0, `saturation`]; contrast multiplies the distance to
    the mean of the image by a number in [`contrast`, `contrast` + 1].
    """

    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        added, saturated, contrasted = jax.random.uniform(key, (3,), images.dtype)
        images = images + (added - 0.5) * brightness
        gray = images.mean(-1, keepdims=True)
        images = (
            (images - gray) * (saturated * saturation) + gray if images.shape[-1] > 1 else images
        )
        mean = images.mean((1, 2, 3), keepdims=True)
        return (images - mean) * (contrasted + contrast) + mean

    return transform


def _resampled(images: jax.Array, matrix: jax.Array) -> jax.Array:
    """Bilinear: the place p, from the center, gets what was at `matrix` p; 0 outside."""
    _, h, w, _ = images.shape
    center = jnp.array([(h - 1) / 2, (w - 1) / 2], images.dtype)
    places = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")).reshape(2, -1)
    sources = matrix @ (places - center[:, None]) + center[:, None]
    of_channel = lambda x: map_coordinates(x, list(sources), order=1, mode="constant").reshape(h, w)
    of_image = jax.vmap(of_channel, in_axes=-1, out_axes=-1)
    return jax.vmap(of_image)(images)
