"""The operators of ONNX as functions of JAX: `rule(attributes, *operands) -> result`.

A rule takes (`pop`) each attribute that it knows; one that is left is an error of the caller. Where
all operands are numpy arrays, sizes and constants, so is the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from recipes.common.onnx import windows
from recipes.common.onnx.files import DTYPES
from recipes.common.onnx.windows import Unknown

Rule = Callable[..., Any]
FLAT = "until opset 12"  # an attribute of Softmax: over its axis and all axes after it


def _xp(*xs: Any) -> Any:
    return np if all(x is None or isinstance(x, (np.ndarray, np.generic)) for x in xs) else jnp


def _entrywise(name: str) -> Rule:
    """Numpy's function of this name, whose broadcasting is that of ONNX."""
    return lambda attributes, *xs: getattr(_xp(*xs), name)(*_of_one_rank(*xs))


def _of_one_rank(*xs: Any) -> list[Any]:
    """The operands with axes of 1 in front, where another has more axes; numbers stay numbers."""
    rank = max(x.ndim for x in xs)
    return [x.reshape((1,) * (rank - x.ndim) + x.shape) if x.ndim else x for x in xs]


def _of_all(name: str) -> Rule:
    """A function of two, over one or more operands."""

    def rule(attributes: Any, first: Any, *rest: Any) -> Any:
        for x in rest:
            first = getattr(_xp(first, x), name)(*_of_one_rank(first, x))
        return first

    return rule


def _sizes(x: Any) -> list[int]:
    """Numbers that must be known."""
    return [int(n) for n in np.asarray(x).reshape(-1)]


def _div(attributes: Any, a: Any, b: Any) -> Any:
    a, b = _of_one_rank(a, b)
    if not jnp.issubdtype(jnp.result_type(a), jnp.integer):
        return a / b
    whole = abs(a) // abs(b)  # integers are cut off towards zero
    return _xp(a, b).where((a < 0) == (b < 0), whole, -whole)


def _cast(attributes: Any, x: Any) -> Any:
    dtype = DTYPES.get(to := attributes.pop("to"))
    if dtype is None:
        raise Unknown(f"to={to} is a type that is not read here")
    return x.astype(dtype) if _xp(x) is np else x.astype(jax.dtypes.canonicalize_dtype(dtype))


# --- shapes ---------------------------------------------------------------------------------------


def _reshape(attributes: Any, x: Any, shape: Any) -> Any:
    zero_is_size = attributes.pop("allowzero", 0)
    wanted = _sizes(shape)
    if not zero_is_size:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


def _expand(attributes: Any, x: Any, shape: Any) -> Any:
    return _xp(x).broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_sizes(shape))))


def _shape(attributes: Any, x: Any) -> Any:
    start, end = attributes.pop("start", 0), attributes.pop("end", None)
    return np.array(x.shape[start:end], np.int64)


def _slice(
    attributes: Any, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Any:
    starts, ends = _sizes(starts), _sizes(ends)
    axes = [*range(len(starts))] if axes is None else _sizes(axes)
    steps = [1] * len(starts) if steps is None else _sizes(steps)
    cuts = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        past = step < 0 and end < -x.shape[axis]  # before the first entry
        cuts[axis] = slice(start, None if past else end, step)
    return x[tuple(cuts)]


def _concat(attributes: Any, *xs: Any) -> Any:
    return _xp(*xs).concatenate(xs, attributes.pop("axis"))


def _squeeze(attributes: Any, x: Any, axes: Any = None) -> Any:
    axes = attributes.pop("axes", None) if axes is None else axes
    return _xp(x).squeeze(x, None if axes is None else tuple(_sizes(axes)))


def _unsqueeze(attributes: Any, x: Any, axes: Any = None) -> Any:
    axes = attributes.pop("axes") if axes is None else axes  # of an input since opset 13
    return _xp(x).expand_dims(x, tuple(_sizes(axes)))


def _transpose(attributes: Any, x: Any) -> Any:
    return _xp(x).transpose(x, attributes.pop("perm", None))


def _flatten(attributes: Any, x: Any) -> Any:
    axis = attributes.pop("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _gather(attributes: Any, x: Any, indices: Any) -> Any:
    axis = attributes.pop("axis", 0)
    xp = _xp(x, indices)
    return xp.take(x, xp.where(indices < 0, indices + x.shape[axis], indices), axis)


# --- products -------------------------------------------------------------------------------------


def _gemm(attributes: Any, a: Any, b: Any, c: Any = None) -> Any:
    alpha, beta = attributes.pop("alpha", 1.0), attributes.pop("beta", 1.0)
    a = a.T if attributes.pop("transA", 0) else a
    b = b.T if attributes.pop("transB", 0) else b
    y = a @ b if alpha == 1 else alpha * (a @ b)
    return y if c is None else _entrywise("add")({}, y, c if beta == 1 else beta * c)


# --- reductions -----------------------------------------------------------------------------------


def _reduction(name: str) -> Rule:
    def rule(attributes: Any, x: Any, axes: Any = None) -> Any:
        keep = bool(attributes.pop("keepdims", 1))
        of_attribute = attributes.pop("axes", None)  # until opset 18, but of ReduceSum
        none = attributes.pop("noop_with_empty_axes", 0)
        given = of_attribute if axes is None else _sizes(axes)
        if not given and none:
            return x
        return getattr(_xp(x), name)(x, axis=tuple(given) if given else None, keepdims=keep)

    return rule


def _over_space(name: str) -> Rule:
    return lambda attributes, x: getattr(jnp, name)(x, tuple(range(2, x.ndim)), keepdims=True)


def _batch_norm(attributes: Any, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    attributes.pop("momentum", None)
    if attributes.pop("training_mode", 0):
        raise Unknown("training_mode=1 has no rule: export the network for inference")
    wide = lambda v: v.reshape(1, -1, *[1] * (x.ndim - 2))
    factor = scale / jnp.sqrt(variance + attributes.pop("epsilon", 1e-5))
    return (x - wide(mean)) * wide(factor) + wide(bias)


def _clip(attributes: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    return _xp(x).clip(x, low, high)


def _hard_sigmoid(attributes: Any, x: Any) -> Any:
    alpha, beta = attributes.pop("alpha", 0.2), attributes.pop("beta", 0.5)
    return jnp.clip(alpha * x + beta, 0, 1)


def _softmax(attributes: Any, x: Any) -> Any:
    axis = attributes.pop("axis", -1)
    if attributes.pop(FLAT, 0):
        return jax.nn.softmax(x, tuple(range(axis % x.ndim, x.ndim)))
    return jax.nn.softmax(x, axis)


RULES: dict[str, Rule] = {
    **{kind: _entrywise(name) for kind, name in {
        "Add": "add", "Sub": "subtract", "Mul": "multiply", "Pow": "power", "Sqrt": "sqrt",
        "Exp": "exp", "Log": "log", "Tanh": "tanh", "Neg": "negative", "Abs": "abs",
        "Equal": "equal", "Less": "less", "Greater": "greater", "Not": "logical_not",
        "And": "logical_and", "Or": "logical_or", "Where": "where",
    }.items()},
    **{f"Reduce{kind}": _reduction(kind.lower()) for kind in ("Sum", "Mean", "Max", "Min")},
    "Max": _of_all("maximum"),
    "Min": _of_all("minimum"),
    "Div": _div,
    "Reciprocal": lambda attributes, x: 1 / x,
    "Relu": lambda attributes, x: jax.nn.relu(x),
    "Sigmoid": lambda attributes, x: jax.nn.sigmoid(x),
    "HardSigmoid": _hard_sigmoid,
    "Softmax": _softmax,
    "Erf": lambda attributes, x: lax.erf(x),
    "Clip": _clip,
    "Identity": lambda attributes, x: x,
    "Constant": lambda attributes: attributes.pop("value"),
    "Cast": _cast,
    "Reshape": _reshape,
    "Expand": _expand,
    "Shape": _shape,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Flatten": _flatten,
    "Gather": _gather,
    "MatMul": lambda attributes, a, b: _xp(a, b).matmul(a, b),
    "Gemm": _gemm,
    "Conv": windows.conv,
    "ConvTranspose": windows.conv_transpose,
    "MaxPool": windows.max_pool,
    "AveragePool": windows.average_pool,
    "Resize": windows.resize,
    "GlobalMaxPool": _over_space("max"),
    "GlobalAveragePool": _over_space("mean"),
    "BatchNormalization": _batch_norm,
}  # fmt: skip
