"""RepQ: a step of quantization for each channel after a norm becomes one step for all."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import is_known


class Folded(NamedTuple):
    """A norm and the layer that reads it, after `repq_fold`.

    Attributes:
      scale, bias: of the norm, (channels,).
      kernel: of the layer, (channels, outputs).
      kernel_bias: of the layer, (outputs,).
      step, zero: one number each, of the grid of all channels.
    """

    scale: jax.Array
    bias: jax.Array
    kernel: jax.Array
    kernel_bias: jax.Array
    step: jax.Array
    zero: jax.Array


def repq_fold(
    scale: Any, bias: Any, kernel: Any, kernel_bias: Any, steps: Any, zeros: Any
) -> Folded:
    """The same function with one grid for all channels that the norm gives.

        step = mean(steps),  zero = mean(zeros),  r = steps / step,  b = step (zero - zeros)
        scale / r,  bias / r - b,  kernel r,  kernel_bias + (kernel r) b

    The outputs of the norm become x / r - b. An asymmetric grid for each channel, levels step_c
    (k - zero_c), is then the one grid step (k - zero), which integer products need. What the layer
    gives stays the same, up to rounding of floats. Calibrate the weights of the layer after it.

    Args:
      scale, bias: of a LayerNorm or RMSNorm with a bias, (channels,).
      kernel, kernel_bias: of the one layer that reads the norm, (channels, outputs), (outputs,).
      steps: the step of each channel, (channels,), positive.
      zeros: the level that is zero in each channel, (channels,).

    Raises:
      ValueError: for shapes that do not fit, and for steps that are not positive.

    Reference: Li et al., 2023, RepQ-ViT: Scale Reparameterization for Post-Training Quantization of
    Vision Transformers.

    >>> import jax.numpy as jnp
    >>> folded = repq_fold([1., 2.], [.5, -.5], [[1., 3.], [2., -1.]], [.1, .2], [.1, .3], [8, 5])
    >>> x = jnp.array([.3, -.7]) * folded.scale + folded.bias
    >>> [round(float(y), 4) for y in x @ folded.kernel + folded.kernel_bias]
    [-2.9, 4.5]
    """
    given = {
        name: jnp.asarray(x)
        for name, x in {
            "scale": scale,
            "bias": bias,
            "kernel": kernel,
            "kernel_bias": kernel_bias,
            "steps": steps,
            "zeros": zeros,
        }.items()
    }
    channels, outputs = given["scale"].shape, given["kernel_bias"].shape
    wanted = dict.fromkeys(given, channels) | {
        "kernel": (*channels, *outputs),
        "kernel_bias": outputs,
    }
    got = {name: x.shape for name, x in given.items()}
    if len(channels) != 1 or len(outputs) != 1 or got != wanted:
        raise ValueError(
            "repq_fold: scale, bias, steps and zeros are (channels,), kernel is (channels, "
            f"outputs) and kernel_bias (outputs,); got {got}."
        )
    if is_known(given["steps"]) and not (np.asarray(steps) > 0).all():
        raise ValueError(f"repq_fold: steps are positive; got {np.asarray(steps).tolist()}.")
    step, zero = given["steps"].mean(), given["zeros"].mean()
    r, b = given["steps"] / step, step * (zero - given["zeros"])
    new = given["kernel"] * r[:, None]
    return Folded(
        scale=given["scale"] / r,
        bias=given["bias"] / r - b,
        kernel=new,
        kernel_bias=given["kernel_bias"] + b @ new,
        step=step,
        zero=zero,
    )
