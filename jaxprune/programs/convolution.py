"""A 2-D convolution that stays fast on CPU under `vmap` over kernels, in `scan` and in gradients.

XLA's CPU backend has fast convolutions for one form only (NHWC x HWIO -> NHWC, one group), and it
rewrites other forms to that one only at the top level of a program: not inside a loop. The
gradient of a convolution, and a convolution vmapped over its kernels, are such other forms, so that
training crawls inside `lax.scan`. Here every convolution, also of the gradient, is written in the
fast form, and `vmap` becomes one convolution per lane. A kernel (k, 1) or (1, k) has no fast form:
it becomes k products of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxprune.programs.primitives import register_rule

NHWC = ("NHWC", "HWIO", "NHWC")
FEW = 16  # products that stand for a convolution along one axis

Pair = tuple[int, int]


class _Window(NamedTuple):
    """How the kernel moves, each for (height, width)."""

    strides: Pair
    padding: tuple[Pair, Pair]
    lhs_dilation: Pair
    rhs_dilation: Pair
    precision: Any


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
    out_sharding: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated`, fast on CPU under `vmap`, in loops and in gradients.

    It stands in for it in flax, linen and nnx: `nn.Conv(..., conv_general_dilated=
    jp.conv_general_dilated)`. The 2-D NHWC convolution with HWIO kernels and one group, with any
    strides, padding and dilations, goes the fast way; all else (1-D, 3-D, grouped, depthwise,
    other layouts), and every other backend, is left to `lax`. It differentiates in forward and
    reverse mode, to any order. Values are those of `lax` up to rounding.

    Under `vmap` over kernels it becomes one convolution a lane, laid out one after the other: the
    program grows with the number of lanes.

    Args:
      lhs: inputs, (n, h, w, in).
      rhs: the kernel, (kh, kw, in, out), of the inputs' dtype.
      window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers: as for `lax`.
      feature_group_count, batch_group_count: as for `lax`.
      precision, preferred_element_type, out_sharding: as for `lax`.

    Returns:
      (n, h', w', out), of the inputs' dtype.

    Raises:
      TypeError, ValueError, RuntimeError: where `lax.conv_general_dilated` does.

    >>> x, kernel = jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1))
    >>> layouts = 'NHWC', 'HWIO', 'NHWC'
    >>> conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=layouts)[0, :, :, 0]
    Array([[4., 6., 6., 4.],
           [6., 9., 9., 6.],
           [6., 9., 9., 6.],
           [4., 6., 6., 4.]], dtype=float32)
    """
    native = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=out_sharding,
    )
    ours = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, NHWC)
    covered = (
        jax.default_backend() == "cpu"
        and lhs.ndim == 4
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == ours
        and feature_group_count == batch_group_count == 1
        and preferred_element_type is None
        and out_sharding is None
        and not (isinstance(padding, str) and lhs_dilation and set(lhs_dilation) != {1})
    )
    if not covered:
        return native(lhs, rhs)
    jax.eval_shape(native, lhs, rhs)  # raises what lax raises
    spread, dilation = _pair(lhs_dilation or (1, 1)), _pair(rhs_dilation or (1, 1))
    if isinstance(padding, str):
        window = [_extent(n, d) for n, d in zip(rhs.shape[:2], dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], window, window_strides, padding)
    (top, bottom), (left, right) = padding
    edges = (top, bottom), (left, right)
    return _conv(lhs, rhs, _Window(_pair(window_strides), edges, spread, dilation, precision))


def _conv(x: jax.Array, w: jax.Array, window: _Window) -> jax.Array:
    jaxpr = _jaxpr(x.shape, x.dtype, w.shape, w.dtype, window)
    return _conv_p.bind(x, w, window=window, jaxpr=jaxpr)


@lru_cache(maxsize=1024)
def _jaxpr(x_shape: Any, x_dtype: Any, w_shape: Any, w_dtype: Any, window: _Window) -> Any:
    """What the primitive does, for those who read programs, such as `jaxprune.programs.flops`."""
    x, w = jax.ShapeDtypeStruct(x_shape, x_dtype), jax.ShapeDtypeStruct(w_shape, w_dtype)
    return jax.make_jaxpr(partial(_lax_conv, window=window))(x, w)


def _run(x: jax.Array, w: jax.Array, *, window: _Window, jaxpr: Any) -> jax.Array:
    form = _by_products if _is_along_one_axis(x, w, window) else _lax_conv
    return form(x, w, window=window)


def _is_along_one_axis(x: jax.Array, w: jax.Array, window: _Window) -> bool:
    """Whether a float32 kernel (k, 1) or (1, k) moves in steps of 1, and k or its places are few.

    The gradient by such a kernel is of this kind too: its window is wide, its places are k.
    """
    steps = {*window.strides, *window.lhs_dilation, *window.rhs_dilation}
    axis = int(w.shape[0] == 1)
    length, other = w.shape[axis], w.shape[1 - axis]
    places = x.shape[1 + axis] + sum(window.padding[axis]) - length + 1
    few = 0 < min(length, places) <= FEW
    return steps == {1} and x.dtype == jnp.float32 and other == 1 < length and few


def _by_products(x: jax.Array, w: jax.Array, *, window: _Window) -> jax.Array:
    """A convolution along one axis, as products of matrices.

    XLA's CPU backend has no fast form of it: 32 inputs (512, 1, 256) with a kernel (5, 1, 256, 512)
    take three times as long, their gradient five times.
    """
    axis, kernel = 1 + int(w.shape[0] == 1), w.reshape(-1, *w.shape[2:])
    edges = [(0, 0, 0), *((*pair, 0) for pair in window.padding), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    length, places = len(kernel), x.shape[axis] - len(kernel) + 1
    cut = lambda start, size: lax.slice_in_dim(x, start, start + size, axis=axis)
    dot = partial(jnp.tensordot, precision=window.precision)
    if length <= places:
        return reduce(jnp.add, (dot(cut(i, places), kernel[i], 1) for i in range(length)))
    summed = (axis, 3), (0, 1)
    return jnp.stack([dot(cut(i, length), kernel, summed) for i in range(places)], axis)


def _lax_conv(x: jax.Array, w: jax.Array, *, window: _Window, jaxpr: Any = None) -> jax.Array:
    strides, padding, lhs_dilation, rhs_dilation, precision = window
    return lax.conv_general_dilated(
        x, w, strides, padding, lhs_dilation, rhs_dilation, NHWC, precision=precision
    )


def _one_conv_per_lane(operands: Any, axes: Any, *, window: _Window, jaxpr: Any) -> Any:
    (size,) = {x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None}
    x, w = (
        [operand] * size if axis is None else jnp.moveaxis(operand, axis, 0)
        for operand, axis in zip(operands, axes, strict=True)
    )
    return jnp.stack([_conv(x[i], w[i], window) for i in range(size)]), 0


def _input_gradient(dy, x, w, window):
    """The convolution of dy with w, flipped; strides and input dilation change places."""
    padding = []
    for axis in (0, 1):
        reach = _extent(w.shape[axis], window.rhs_dilation[axis])
        before = reach - 1 - window.padding[axis][0]
        size = _extent(x.shape[axis + 1], window.lhs_dilation[axis])
        spread = _extent(dy.shape[axis + 1], window.strides[axis])
        padding.append((before, size + reach - 1 - spread - before))
    swapped = window._replace(
        strides=window.lhs_dilation, lhs_dilation=window.strides, padding=tuple(padding)
    )
    return _conv(dy, jnp.flip(w, (0, 1)).swapaxes(2, 3), swapped)


def _kernel_gradient(dy, x, w, window):
    """The correlation of x with dy: x's channels as the batch, the batch as channels.

    Strides and kernel dilation change places.
    """
    padding = []
    for axis in (0, 1):
        low = window.padding[axis][0]
        size = _extent(x.shape[axis + 1], window.lhs_dilation[axis])
        reach = _extent(dy.shape[axis + 1], window.strides[axis])
        span = _extent(w.shape[axis], window.rhs_dilation[axis])
        padding.append((low, reach + span - 1 - size - low))
    swapped = window._replace(
        strides=window.rhs_dilation, rhs_dilation=window.strides, padding=tuple(padding)
    )
    dw = _conv(x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3), swapped)
    return dw.transpose(1, 2, 0, 3)


def _extent(size: int, dilation: int) -> int:
    """How far `size` entries reach with `dilation - 1` holes between neighbors."""
    return (size - 1) * dilation + 1


def _pair(values: Sequence[int]) -> Pair:
    first, second = values
    return first, second


# A convolution is linear in the input and in the kernel. A primitive whose transposes are again
# this primitive is in the fast form in derivatives of any order, forward and reverse.
_conv_p = Primitive("fast_conv")
_conv_p.def_impl(jax.jit(_run, static_argnames=("window", "jaxpr")))
_conv_p.def_abstract_eval(lambda x, w, *, window, jaxpr: jaxpr.out_avals[0])
mlir.register_lowering(_conv_p, mlir.lower_fun(_run, multiple_results=False))
batching.primitive_batchers[_conv_p] = _one_conv_per_lane
ad.defbilinear(
    _conv_p,
    lambda dy, x, w, *, window, jaxpr: _input_gradient(dy, x.aval, w, window),
    lambda dy, x, w, *, window, jaxpr: _kernel_gradient(dy, x, w.aval, window),
)
# the jaxpr that it holds says which axes are the same; replayed, it is itself
register_rule(
    "fast_conv",
    lambda reader, eqn, operands: reader.inner(eqn.params["jaxpr"], operands),
    replay=lambda step, keep, operands: [
        _conv(operands[0], operands[1], step.eqn.params["window"])
    ],
)
