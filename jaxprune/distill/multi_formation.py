"""IDC: several images in the numbers of one."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def multi_formation(images: jax.Array, factor: int) -> jax.Array:
    """Each image cut into `factor` x `factor` parts, each part enlarged to the size of an image.

    (..., n, h, w, c) -> (..., n * factor^2, h, w, c), linear in `images`. So a set of n images
    stores n factor^2 smaller ones. Bilinear, as in the authors' code.

    Raises:
      ValueError: if `images` has fewer than four axes, or `factor` is no positive integer that
        divides height and width.

    Reference: Kim et al., 2022, Dataset Condensation via Efficient Synthetic-Data Parameterization.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.distill.multi_formation(jnp.ones((10, 5, 32, 32, 3)), 2).shape
    (10, 20, 32, 32, 3)
    """
    if jnp.ndim(images) < 4:
        raise ValueError(
            "multi_formation: images are (..., n, height, width, channels); got shape "
            f"{jnp.shape(images)}."
        )
    *outer, n, h, w, c = images.shape
    if (
        isinstance(factor, bool)
        or not isinstance(factor, int)
        or factor < 1
        or h % factor
        or w % factor
    ):
        raise ValueError(
            f"multi_formation: factor is a positive integer that divides {h} and {w}, the height "
            f"and width; got {factor!r}. Store images of another size."
        )
    parts = images.reshape(*outer, n, factor, h // factor, factor, w // factor, c)
    parts = jnp.moveaxis(parts, -3, -4)  # (..., n, factor, factor, h / factor, w / factor, c)
    parts = parts.reshape(*outer, n * factor**2, h // factor, w // factor, c)
    return jax.image.resize(parts, (*parts.shape[:-3], h, w, c), "linear")
