"""Where a network looks: attention maps over places, without the channels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import widened
from jaxprune.distillation.logits import forward_kl
from jaxprune.distillation.maps import check_places, norm, pair
from jaxprune.gates.gate import check_positive

_WAY_OUT = "Choose layers whose features have one height and width."


def attention_transfer(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """The distance between normalized maps of squared features: no regressor is needed.

        mean over examples of |A_student / |A_student| - A_teacher / |A_teacher||,  A = sum_c h_c^2

    Args:
      student, teacher: features (n, ..., channels), floating point, with at least one axis of
        places between; the numbers of channels may differ.

    Returns:
      A float32 scalar, at most sqrt(2). The teacher has no gradient. A map that is 0 everywhere
      stays 0, and has no gradient.

    Raises:
      ValueError: if the features do not fit, or have no places.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> student, teacher = jnp.array([[[1.], [0.]]]), jnp.array([[[0., 0.], [1., 2.]]])
    >>> round(float(jp.distillation.attention_transfer(student, teacher)), 4)
    1.4142

    Reference: Zagoruyko and Komodakis, 2017, Paying More Attention to Attention: Improving the
    Performance of Convolutional Neural Networks via Attention Transfer.
    """
    _check("attention_transfer", student, teacher)
    maps = [_flat(jnp.sum(x**2, -1)) for x in pair(student, teacher)]
    own, told = (a / jnp.maximum(norm(a), jnp.finfo(a.dtype).tiny) for a in maps)
    return jnp.mean(norm(own - told))


def spatial_attention(student: jax.Array, teacher: jax.Array, temperature: Any = 1.0) -> jax.Array:
    """The divergence between distributions over places: the share of attention that each gets.

        T^2 KL(softmax(M_teacher / T) | softmax(M_student / T)),  M = mean over channels of |h|

    Group channel pruning distills the spatial attention of each group of layers after the prune:
    sum this loss over the last layer of each group. The form of the loss is our reading.

    Args:
      student, teacher: as in `attention_transfer`.
      temperature: T above 0; may be traced. A low one sharpens the attention.

    Returns:
      A float32 scalar, the mean over examples. The teacher has no gradient.

    Raises:
      ValueError: if the features do not fit, or have no places; if the temperature is not above 0.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> student, teacher = jnp.array([[[1.], [0.]]]), jnp.array([[[3., -1.], [0., 0.]]])
    >>> round(float(jp.distillation.spatial_attention(student, teacher)), 4)
    0.0671

    Reference: Chu et al., 2022, Group channel pruning and spatial attention distilling for object
    detection.
    """
    _check("spatial_attention", student, teacher)
    check_positive("spatial_attention", "temperature", temperature)
    own, told = (_flat(jnp.mean(jnp.abs(widened(x)), -1)) for x in (student, teacher))
    return forward_kl(own, told, temperature)


def _check(what: str, student: jax.Array, teacher: jax.Array) -> None:
    check_places(what, student, teacher, _WAY_OUT)
    if jnp.ndim(student) < 3:
        raise ValueError(
            f"{what} needs features with places, (n, ..., channels), as convolutions and attention "
            f"have; got shape {jnp.shape(student)}. For vectors take jp.distillation.relational."
        )


def _flat(maps: jax.Array) -> jax.Array:
    """(n, ...) -> (n, places)."""
    return maps.reshape(len(maps), -1)
