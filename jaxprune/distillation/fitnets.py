"""FitNets: the features of a student, after a learned map, are those of its teacher."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.distillation.maps import check_places, pair
from jaxprune.keys import check_key


def fitnets(student: jax.Array, teacher: jax.Array, regressor: Any = None) -> jax.Array:
    """The mean square of `regressor(student) - teacher`.

        mean over examples of |r(h_student) - h_teacher|^2 / dim,   r(h) = h kernel + bias

    The map r reads the channels of each place, so in a convolutional network it is a 1 x 1
    convolution. It learns beside the student, in the same optimizer, and is thrown away afterwards.

    Args:
      student: features (n, ..., channels), floating point.
      teacher: features (n, ..., its channels).
      regressor: {"kernel": (channels, its channels), "bias": (its channels,)}, as the function
        `regressor` makes it; None where both have as many channels, which are compared as they are.

    Returns:
      A float32 scalar. The teacher has no gradient.

    Raises:
      ValueError: if the features, or the regressor, do not fit.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> student, teacher = jnp.array([[1., 2.]]), jnp.array([[3., 3.]])
    >>> float(jp.distillation.fitnets(student, teacher))
    2.5

    Reference: Romero et al., 2015, FitNets: Hints for Thin Deep Nets.
    """
    check_places("fitnets", student, teacher, "Choose layers with features of one size.")
    own, told = pair(student, teacher)
    channels = own.shape[-1], told.shape[-1]
    if regressor is None and channels[0] != channels[1]:
        raise ValueError(
            f"fitnets: the student has {channels[0]} channels and the teacher {channels[1]}, which "
            "needs a learned map: regressor=jp.distillation.regressor(key, student, teacher)."
        )
    if regressor is not None:
        shapes = {name: jnp.shape(x) for name, x in regressor.items()}
        wanted = {"kernel": channels, "bias": channels[1:]}
        if shapes != wanted:
            raise ValueError(
                f"fitnets: a regressor from {channels[0]} to {channels[1]} channels has the shapes "
                f"{wanted}; got {shapes}. Make it by jp.distillation.regressor(key, student, "
                "teacher)."
            )
        bias = regressor["bias"].reshape((1,) * (own.ndim - 1) + (-1,))
        own = own @ regressor["kernel"] + bias
    return jnp.mean((own - told) ** 2)


def regressor(key: jax.Array, student: Any, teacher: Any) -> dict[str, jax.Array]:
    """A linear map from the student's channels to the teacher's, to be learned: see `fitnets`.

    Args:
      key: of jax.random.
      student, teacher: features (n, ..., channels), or `jax.ShapeDtypeStruct`s like them.

    Returns:
      {"kernel": float32 (channels, its channels), LeCun normal; "bias": (its channels,), zeros}.

    Raises:
      TypeError: if the key is none of jax.random.
      ValueError: if the features do not fit.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> r = jp.distillation.regressor(jax.random.key(0), jnp.ones((8, 3)), jnp.ones((8, 5)))
    >>> r['kernel'].shape, r['bias'].shape
    ((3, 5), (5,))
    """
    check_key("regressor", key)
    check_places("regressor", student, teacher, "Choose layers with features of one size.")
    shape = student.shape[-1], teacher.shape[-1]
    kernel = jax.nn.initializers.lecun_normal()(key, shape, jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(shape[1:])}
