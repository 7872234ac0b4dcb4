"""A 2-D convolution that stays fast on CPU under `vmap` over kernels, in `scan` and in gradients.

XLA's CPU backend has one fast convolution (NHWC x HWIO -> NHWC, one group, no input dilation), and
it rewrites other forms to that one only at the top level of a program: not inside a loop. The
gradient of a convolution, and a convolution vmapped over its kernels, are such other forms, so that
training crawls (15 to 400 times slower) inside `lax.scan`. Here every convolution, those of the
gradient too, is asked for in the fast form, and `vmap` becomes one convolution per lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pairs = tuple[tuple[int, int], tuple[int, int]]
Ints = tuple[int, int]

NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=...)`: (n, h, w, out).

    Takes 2-D NHWC inputs (n, h, w, in) and HWIO kernels (kh, kw, in, out) with any stride, padding
    and kernel dilation the fast way; leaves everything else, and every other backend, to `lax`.
    It differentiates in reverse mode, to any order; forward mode (`jax.jvp`) needs `lax`'s own.
    """
    covered = (
        jax.default_backend() == "cpu"
        and lhs.ndim == 4
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
        and set(lhs_dilation or (1,)) == {1}
        and feature_group_count == batch_group_count == 1
        and preferred_element_type is None
    )
    if not covered:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    sh, sw = window_strides
    dh, dw = rhs_dilation or (1, 1)
    if isinstance(padding, str):
        window = _dilated(rhs.shape[:2], (dh, dw))
        padding = lax.padtype_to_pads(lhs.shape[1:3], window, (sh, sw), padding)
    (top, bottom), (left, right) = padding
    return _conv(lhs, rhs, (sh, sw), ((top, bottom), (left, right)), (dh, dw), precision)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv(
    x: jax.Array, w: jax.Array, strides: Ints, padding: Pairs, dilation: Ints, precision: Any
) -> jax.Array:
    @jax.custom_batching.custom_vmap
    def conv(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=NHWC,
            precision=precision,
        )

    @conv.def_vmap
    def one_conv_per_lane(size, batched, x, w):
        x_batched, w_batched = batched
        lanes = [conv(x[i] if x_batched else x, w[i] if w_batched else w) for i in range(size)]
        return jnp.stack(lanes), True

    return conv(x, w)


def _forward(x, w, strides, padding, dilation, precision):
    # `_conv` and not its body: then the gradient of a gradient meets these rules again
    return _conv(x, w, strides, padding, dilation, precision), (x, w)


def _backward(strides, padding, dilation, precision, residuals, dy):
    x, w = residuals
    return (
        _input_gradient(dy, x, w, strides, padding, dilation, precision),
        _kernel_gradient(dy, x, w, strides, padding, dilation, precision),
    )


def _input_gradient(dy, x, w, strides, padding, dilation, precision):
    """The convolution of dy with w: dy spread out by the strides (zeros between), w flipped.

    XLA could spread dy itself (`lhs_dilation`), but not in its fast form.
    """
    spread = [(0, 0, 0)]
    for axis in (0, 1):
        stride, (low, _) = strides[axis], padding[axis]
        window = (w.shape[axis] - 1) * dilation[axis] + 1
        size, out = x.shape[axis + 1], dy.shape[axis + 1]
        before = window - 1 - low
        after = (size + window - 1) - ((out - 1) * stride + 1) - before
        spread.append((before, after, stride - 1))
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), [*spread, (0, 0, 0)])
    flipped = jnp.flip(w, (0, 1)).swapaxes(2, 3)
    return _conv(dy, flipped, (1, 1), ((0, 0), (0, 0)), dilation, precision)


def _kernel_gradient(dy, x, w, strides, padding, dilation, precision):
    """The correlation of x with dy: x's channels as the batch, the batch as channels.

    Strides and dilation change places.
    """
    edges = []
    for axis in (0, 1):
        stride, (low, _) = strides[axis], padding[axis]
        reach = (dy.shape[axis + 1] - 1) * stride + (w.shape[axis] - 1) * dilation[axis] + 1
        edges.append((low, reach - x.shape[axis + 1] - low))
    channels_as_batch = x.transpose(3, 1, 2, 0)
    images_as_channels = dy.transpose(1, 2, 0, 3)
    dw = _conv(
        channels_as_batch, images_as_channels, dilation, (edges[0], edges[1]), strides, precision
    )
    return dw.transpose(1, 2, 0, 3)


def _dilated(window: Sequence[int], dilation: Sequence[int]) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]


_conv.defvjp(_forward, _backward)
