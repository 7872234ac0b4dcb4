"""The operands of a product as matrices: weights (inputs, outputs), and rows of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxprune.programs.primitives import Side

Back = Callable[[jax.Array], jax.Array]  # matrices -> the operand


def matrices_of(weight: jax.Array, side: Side) -> tuple[jax.Array, Back]:
    """The operand of a product as (n, inputs, outputs), n those side by side; and the way back."""
    rest = [i for i in range(weight.ndim) if i not in (*side.batch, *side.contracted)]
    order = (*side.batch, *side.contracted, *rest)
    moved = weight.transpose(order)
    a, b = len(side.batch), len(side.batch) + len(side.contracted)
    sizes = tuple(map(math.prod, (moved.shape[:a], moved.shape[a:b], moved.shape[b:])))
    back = lambda x: x.reshape(moved.shape).transpose(np.argsort(order).tolist())
    return moved.reshape(sizes), back


def rows_of(x: jax.Array, side: Side) -> jax.Array:
    """The other operand as (n, rows, inputs)."""
    rest = [i for i in range(x.ndim) if i not in (*side.batch, *side.contracted)]
    moved = x.transpose((*side.batch, *rest, *side.contracted))
    n, inputs = (math.prod(x.shape[i] for i in axes) for axes in (side.batch, side.contracted))
    return moved.reshape(n, -1, inputs)


def kernel_matrix(kernel: jax.Array, eqn: Any) -> tuple[jax.Array, Back]:
    """The kernel of a convolution as (1, window * channels, outputs), and the way back.

    Channels are next to each other, so that N:M is along them.
    """
    outputs, channels, *window = eqn.params["dimension_numbers"].rhs_spec
    order = (*window, channels, outputs)
    moved = kernel.transpose(order)
    back = lambda x: x.reshape(moved.shape).transpose(np.argsort(order).tolist())
    return moved.reshape(1, -1, moved.shape[-1]), back


def patches(x: jax.Array, eqn: Any) -> jax.Array:
    """What each output of a convolution reads, (1, rows, window * channels)."""
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
    numbers = eqn.params["dimension_numbers"]
    shape = eqn.invars[1].aval.shape
    window = [shape[axis] for axis in numbers.rhs_spec[2:]]
    found = lax.conv_general_dilated_patches(
        x, window, precision=lax.Precision.HIGHEST, **{name: eqn.params[name] for name in names}
    )
    # its features are channels, and within them the window
    _, feature, *_ = numbers.out_spec
    last = found.transpose([i for i in range(found.ndim) if i != feature] + [feature])
    split = last.reshape(-1, shape[numbers.rhs_spec[1]], math.prod(window))
    return split.swapaxes(1, 2).reshape(1, len(split), -1)
