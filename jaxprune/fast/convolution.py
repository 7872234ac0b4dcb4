"""A convolution as products with shifted images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclass(frozen=True)
class Image:
    """The padded image of a convolution, and its window.

    Attributes:
      x: (n, spatial..., channels).
      taps: for each place of the window, in the order of the kernel, its offset along each axis.
      strides, dilation: of the window.
      sizes: of the result, spatial.
    """

    x: jax.Array
    taps: tuple[tuple[int, ...], ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    sizes: tuple[int, ...]

    def part(self, tap: int, first: int = 0, last: int | None = None) -> jax.Array:
        """The channels [first, last) that a place of the window reads: (n, sizes..., channels)."""
        n, *_, channels = self.x.shape
        last = channels if last is None else last
        begin = self.taps[tap]
        end = [
            at + (size - 1) * stride + 1
            for at, size, stride in zip(begin, self.sizes, self.strides, strict=True)
        ]
        return lax.slice(self.x, (0, *begin, first), (n, *end, last), (1, *self.strides, 1))

    def dense(self, x: jax.Array, kernel: jax.Array, **how: Any) -> jax.Array:
        """The convolution of channels of the image with a kernel (window..., channels, out)."""
        n = len(self.sizes)
        image = (0, n + 1, *range(1, n + 1))  # batch, channels, spatial
        numbers: Any = lax.ConvDimensionNumbers(image, (n + 1, n, *range(n)), image)
        return lax.conv_general_dilated(
            *(x, kernel, self.strides, [(0, 0)] * n),  # the image is padded
            rhs_dilation=self.dilation,
            dimension_numbers=numbers,
            **how,
        )

    def features(self, places: Sequence[tuple[int, int]] | None = None) -> jax.Array:
        """(n * sizes, features) of ranges [a, b) of the features, (window, channels) flattened."""
        channels, parts = self.x.shape[-1], []
        for a, b in [(0, len(self.taps) * channels)] if places is None else places:
            while a < b:
                tap, first = divmod(a, channels)
                last = min(first + b - a, channels)
                parts.append(self.part(tap, first, last))
                a += last - first
        rows = self.x.shape[0] * math.prod(self.sizes)
        if not parts:
            return jnp.zeros((rows, 0), self.x.dtype)
        return jnp.concatenate(parts, -1).reshape(rows, -1)


def image_of(eqn: Any, x: jax.Array) -> Image:
    """The image that a conv_general_dilated reads, as its kernel (window..., channels) meets it."""
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    batch, feature, *spatial = numbers.lhs_spec
    x = x.transpose(batch, *spatial, feature)
    edges = [(low, high, 0) for low, high in params["padding"]]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    window = [eqn.invars[1].aval.shape[i] for i in numbers.rhs_spec[2:]]
    steps = zip(window, params["rhs_dilation"], strict=True)
    taps = tuple(product(*(range(0, n * step, step) for n, step in steps)))
    sizes = tuple(eqn.outvars[0].aval.shape[i] for i in numbers.out_spec[2:])
    return Image(x, taps, tuple(params["window_strides"]), tuple(params["rhs_dilation"]), sizes)


def convolve(eqn: Any, x: jax.Array, multiply: Callable[..., jax.Array]) -> jax.Array:
    """The result of a convolution; `multiply(image, **how)` gives (n * sizes, out)."""
    image = image_of(eqn, x)
    how = {name: eqn.params[name] for name in ("precision", "preferred_element_type")}
    y = multiply(image, **how)
    y = y.reshape(len(image.x), *image.sizes, y.shape[-1])
    batch, feature, *spatial = eqn.params["dimension_numbers"].out_spec
    return y.transpose(np.argsort([batch, *spatial, feature]).tolist())
