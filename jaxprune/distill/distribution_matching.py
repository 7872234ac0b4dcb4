"""DM: synthetic images have the mean features of real ones, in networks with random weights."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.base import widened
from jaxprune.distill.classes import Augment, augmented, check_classes, keys_of


def distribution_matching(
    features: Callable[[jax.Array], jax.Array],
    synthetic: jax.Array,
    real: jax.Array,
    *,
    augment: Augment | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The squared distance between mean features of real and synthetic images, summed over classes.

        sum_c |mean phi(A(real_c)) - mean phi(A(synthetic_c))|^2

    Its gradient with respect to `synthetic` needs one forward and backward pass: no network is
    trained. Draw new weights for `features` at each step, and a new batch of real images.

    Args:
      features: `images (n, ...) -> features (n, ...)` of an untrained network, before its last
        layer.
      synthetic: (classes, n, ...), floating point.
      real: (classes, m, ...); 256 of each class in the authors' code.
      augment: `(key, images) -> images`, such as `siamese()`: a key for each class, the same draw
        for its real and its synthetic images.
      key: for `augment`.

    Returns:
      A float32 scalar; exactly 0 where `synthetic` is `real`.

    Raises:
      ValueError: if classes or shapes differ, a class has no example, or `augment` has no key.

    Reference: Zhao and Bilen, 2023, Dataset Condensation with Distribution Matching.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> synthetic, real = jnp.array([[[1., 2.]]]), jnp.array([[[3., 2.], [1., 4.]]])
    >>> float(jp.distill.distribution_matching(lambda images: images, synthetic, real))
    2.0
    """
    what = "distribution_matching"
    check_classes(what, synthetic, real)
    keys = keys_of(what, augment, key, len(real))

    def mean(key: jax.Array | None, images: jax.Array) -> jax.Array:
        return jnp.mean(widened(features(augmented(augment, key, images))), axis=0)

    wanted = jax.lax.stop_gradient(jax.vmap(mean)(keys, real))
    return jnp.sum((jax.vmap(mean)(keys, synthetic) - wanted) ** 2)
