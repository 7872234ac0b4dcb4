"""DC: synthetic images give a network the gradient that real ones give it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Params, widened
from jaxprune.distill.classes import Augment, augmented, check_classes, keys_of
from jaxprune.prunable.layout import as_matrix
from jaxprune.prunable.rules import kernels, layouts_of
from jaxprune.trees import named_leaves

Distance = Callable[[Params, Params], jax.Array]


def cosine(real: Params, synthetic: Params) -> jax.Array:
    """1 - the cosine between the gradients of each output, summed over outputs and leaves.

    An output without a gradient, on either side, is at distance 1.

    Args:
      real, synthetic: gradients, trees alike; leaves of fewer than two axes count nothing.

    Raises:
      ValueError: if which axes of a leaf are outputs can't be known; it names the leaf.

    Reference: Zhao et al., 2021, Dataset Condensation with Gradient Matching.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> real, synthetic = jnp.array([[1., 0.], [0., 1.]]), jnp.array([[1., 0.], [1., 2.]])
    >>> round(float(jp.distill.cosine({'kernel': real}, {'kernel': synthetic})), 5)
    0.29289
    """
    layouts = layouts_of("distill.cosine", real)

    def rows(leaf_name: str, g: jax.Array) -> jax.Array:
        """(outputs, all else)."""
        matrix = widened(as_matrix(g, layouts[leaf_name]))  # (spatial..., inputs, outputs)
        return matrix.reshape(-1, matrix.shape[-1]).T

    def of_leaf(leaf_name: str, a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = rows(leaf_name, a), rows(leaf_name, b)
        # torch's norm has slope 0 at 0, and so has this one
        lengths = optax.safe_norm(a, 0.0, axis=1) * optax.safe_norm(b, 0.0, axis=1)
        return jnp.sum(1 - jnp.sum(a * b, axis=1) / (lengths + 1e-6))

    return _over_leaves(of_leaf, real, synthetic, least=2)


def squared(real: Params, synthetic: Params) -> jax.Array:
    """The squared differences of the gradients, summed: IDC's for CIFAR.

    Reference: Kim et al., 2022, Dataset Condensation via Efficient Synthetic-Data Parameterization.
    """
    return _over_leaves(lambda _, a, b: jnp.sum((widened(a) - widened(b)) ** 2), real, synthetic)


def absolute(real: Params, synthetic: Params) -> jax.Array:
    """The absolute differences of the gradients, summed: IDC's for MNIST and ImageNet.

    Reference: Kim et al., 2022, Dataset Condensation via Efficient Synthetic-Data Parameterization.
    """

    def of_leaf(_: str, a: jax.Array, b: jax.Array) -> jax.Array:
        difference = widened(a) - widened(b)
        sign = jax.lax.stop_gradient(jnp.sign(difference))  # the slope of jnp.abs is 1 at 0
        return jnp.sum(sign * difference)

    return _over_leaves(of_leaf, real, synthetic)


def gradient_matching(
    loss: Callable[[Params, jax.Array, jax.Array], jax.Array],
    params: Params,
    synthetic: jax.Array,
    real: jax.Array,
    *,
    distance: Distance = cosine,
    augment: Augment | None = None,
    key: jax.Array | None = None,
    prunable: Callable[[Params], Params] = kernels,
) -> jax.Array:
    """The distance between the gradients that real and synthetic images give, summed over classes.

        sum_c distance(dL/dw(A(real_c)), dL/dw(A(synthetic_c)))

    The authors begin with new random weights and, after each step of the images, train the weights
    for some steps on the synthetic set (DC) or on the real one (IDC).

    Args:
      loss: `(params, images (n, ...), labels int32 (n,)) -> scalar`, the mean over images.
      params: of the network, at which gradients are taken.
      synthetic: (classes, n, ...), floating point; index i of the first axis is label i.
      real: (classes, m, ...).
      distance: `cosine` (DC, DSA), `squared` or `absolute` (IDC), or another function of two
        trees of gradients, `(real, synthetic) -> scalar`.
      augment: `(key, images) -> images`, such as `siamese()` (DSA): a key for each class, the same
        draw for its real and its synthetic images.
      key: for `augment`.
      prunable: which gradients count; by default those of kernels. IDC leaves the classifier out:
        `matching(exclude="Dense_0/kernel")`.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: if classes or shapes differ, a class has no example, `augment` has no key, no
        gradient counts, or `cosine` can't tell the outputs of a leaf.

    References: Zhao et al., 2021, Dataset Condensation with Gradient Matching; Zhao and Bilen,
    2021, Dataset Condensation with Differentiable Siamese Augmentation; Kim et al., 2022, Dataset
    Condensation via Efficient Synthetic-Data Parameterization.
    """
    what = "gradient_matching"
    check_classes(what, synthetic, real)
    keys = keys_of(what, augment, key, len(real))
    if not jax.tree.leaves(prunable(params)):
        raise ValueError(
            f"{what}: no gradient counts: prunable gives None for every leaf of the params. Choose "
            "others with prunable=jp.matching(...)."
        )

    def gradient(key: jax.Array | None, label: jax.Array, images: jax.Array) -> Params:
        images = augmented(augment, key, images)
        labels = jnp.full(len(images), label)
        return prunable(jax.grad(loss)(params, images, labels))

    def of_class(key: Any, label: jax.Array, ours: jax.Array, theirs: jax.Array) -> jax.Array:
        wanted = jax.lax.stop_gradient(gradient(key, label, theirs))
        return distance(wanted, gradient(key, label, ours))

    labels = jnp.arange(len(real), dtype=jnp.int32)
    return jnp.sum(jax.vmap(of_class)(keys, labels, synthetic, real))


def _over_leaves(
    of_leaf: Callable[[str, Any, Any], jax.Array], real: Params, synthetic: Params, least: int = 0
) -> jax.Array:
    """The sum of `of_leaf(name, real, synthetic)` over the leaves of `least` axes and more."""
    pairs = zip(named_leaves(real), named_leaves(synthetic), strict=True)
    counted = [(name, a, b) for (name, a), (_, b) in pairs if a is not None and a.ndim >= least]
    return sum((of_leaf(*leaf) for leaf in counted), jnp.float32(0))
