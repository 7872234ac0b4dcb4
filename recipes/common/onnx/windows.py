"""Operators that move a window over (batch, channels, space)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxprune as jp

SAME = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}


class Unknown(Exception):
    """A value of an attribute that has no rule."""


def conv(attributes: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    strides, padding, dilations = _moves(attributes, x.ndim - 2)
    attributes.pop("kernel_shape", None)
    groups = attributes.pop("group", 1)
    how: Any = {"rhs_dilation": dilations, "feature_group_count": groups}
    if x.ndim == 4:  # the layout that is fast on CPU, in gradients too
        x, kernel = x.transpose(0, 2, 3, 1), kernel.transpose(2, 3, 1, 0)
        axes = "NHWC", "HWIO", "NHWC"
        y = jp.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=axes, **how)
        return _plus(y.transpose(0, 3, 1, 2), bias)
    axes = _axes(x.ndim - 2)
    y = lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=axes, **how)
    return _plus(y, bias)


def conv_transpose(attributes: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """The gradient of a convolution: kernels are (inputs, outputs, window)."""
    space = x.ndim - 2
    strides, padding, dilations = _moves(attributes, space)
    attributes.pop("kernel_shape", None)
    more = attributes.pop("output_padding", [0] * space)
    if attributes.pop("group", 1) != 1:
        raise Unknown("a transposed convolution in groups has no rule")
    if isinstance(padding, str):
        raise Unknown("auto_pad of a transposed convolution has no rule")
    reach = [(n - 1) * d for n, d in zip(kernel.shape[2:], dilations, strict=True)]
    edges = [
        (n - before, n - after + end)
        for n, (before, after), end in zip(reach, padding, more, strict=True)
    ]
    y = lax.conv_general_dilated(
        x,
        jnp.flip(jnp.asarray(kernel).swapaxes(0, 1), tuple(range(2, x.ndim))),
        [1] * space,
        edges,
        lhs_dilation=strides,
        rhs_dilation=dilations,
        dimension_numbers=_axes(space),
    )
    return _plus(y, bias)


def max_pool(attributes: Any, x: Any) -> Any:
    how = _window(attributes, x.ndim - 2)
    return lax.reduce_window(x, -jnp.inf, lax.max, *how)


def average_pool(attributes: Any, x: Any) -> Any:
    with_padding = attributes.pop("count_include_pad", 0)
    how = _window(attributes, x.ndim - 2)
    total = lax.reduce_window(x, 0.0, lax.add, *how)
    if with_padding:
        return total / np.prod(how[0])
    return total / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, *how)


def resize(attributes: Any, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None) -> Any:
    """Nearest neighbors: entry i of the result is entry floor(i / scale)."""
    wanted = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    otherwise = {
        "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_floor",
    }
    attributes.pop("cubic_coeff_a", None)
    for name, known in wanted.items():
        given = attributes.pop(name, otherwise.get(name, "nearest"))
        if given != known:
            raise Unknown(f"{name}={given} has no rule, only {known}")
    if scales is not None and np.size(scales):
        factors = [float(n) for n in np.asarray(scales)]
        shape = [int(np.floor(n * f)) for n, f in zip(x.shape, factors, strict=True)]
    else:
        shape = [int(n) for n in np.asarray(sizes)]
        factors = [n / old for n, old in zip(shape, x.shape, strict=True)]
    for axis, (n, factor) in enumerate(zip(shape, factors, strict=True)):
        if n != x.shape[axis]:
            at = np.floor(np.arange(n) / factor).astype(np.int32)
            x = jnp.take(x, np.minimum(at, x.shape[axis] - 1), axis)
    return x


def _axes(space: int) -> tuple[str, str, str]:
    axes = "DHW"[-space:]
    return f"NC{axes}", f"OI{axes}", f"NC{axes}"


def _plus(y: Any, bias: Any) -> Any:
    return y if bias is None else y + bias.reshape(1, -1, *[1] * (y.ndim - 2))


def _window(attributes: Any, space: int) -> tuple[Any, ...]:
    """Window, strides, padding, and dilations of the input (1) and the window."""
    if attributes.pop("ceil_mode", 0) or attributes.pop("storage_order", 0):
        raise Unknown("ceil_mode=1 and storage_order=1 have no rule")
    window = attributes.pop("kernel_shape")
    strides, padding, dilations = _moves(attributes, space)
    padding = padding if isinstance(padding, str) else ((0, 0), (0, 0), *padding)
    ones = (1,) * (space + 2)
    return (1, 1, *window), (1, 1, *strides), padding, ones, (1, 1, *dilations)


def _moves(attributes: Any, space: int) -> tuple[Any, Any, Any]:
    """Strides, padding and dilations of a window."""
    strides, dilations = (attributes.pop(name, [1] * space) for name in ("strides", "dilations"))
    return strides, _padding(attributes, space), dilations


def _padding(attributes: Any, space: int) -> Any:
    """The padding of a window: pairs, or the word of `lax`."""
    pads, auto = attributes.pop("pads", [0] * 2 * space), attributes.pop("auto_pad", "NOTSET")
    if auto in SAME:
        return SAME[auto]
    if auto != "NOTSET":
        raise Unknown(f"auto_pad={auto} is none of NOTSET, {', '.join(SAME)}")
    return [*zip(pads[:space], pads[space:], strict=True)]
