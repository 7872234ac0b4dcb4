"""What the losses share: synthetic and real images by class, and their augmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (key, images (n, ...)) -> images (n, ...); the same key draws the same for any images
Augment = Callable[[jax.Array, jax.Array], jax.Array]


def check_classes(what: str, synthetic: jax.Array, real: jax.Array) -> None:
    """ValueError unless both are (classes, n, ...), with as many classes and alike images."""
    for name, images in (("synthetic", synthetic), ("real", real)):
        if jnp.ndim(images) < 3:
            raise ValueError(
                f"{what}: {name} has an axis of classes, one of examples, and those of an example; "
                f"got shape {jnp.shape(images)}. Give (classes, n, height, width, channels)."
            )
        if 0 in images.shape[:2]:
            raise ValueError(
                f"{what}: {name} has no examples of a class: its shape is {images.shape}. Give at "
                "least one of each class."
            )
    if len(synthetic) != len(real):
        raise ValueError(
            f"{what}: synthetic has {len(synthetic)} classes and real has {len(real)}. Index i of "
            "both first axes is one class."
        )
    if synthetic.shape[2:] != real.shape[2:]:
        raise ValueError(
            f"{what}: one synthetic example has shape {synthetic.shape[2:]}, a real one "
            f"{real.shape[2:]}. Decode or resize the synthetic ones first."
        )


def keys_of(what: str, augment: Augment | None, key: Any, n: int) -> jax.Array | None:
    """`n` keys of one, or None where nothing is augmented; ValueError if the key is missing."""
    if augment is None:
        return None
    if key is None:
        raise ValueError(f"{what}: augment draws at random; give key=..., a new one at each step.")
    return jax.random.split(key, n)


def augmented(augment: Augment | None, key: jax.Array | None, images: jax.Array) -> jax.Array:
    """`images` augmented by `key`; unchanged where there is no augmentation, or no key."""
    return images if augment is None or key is None else augment(key, images)
