"""Leaves that another library has quantized: one weight where the tree has codes and scales.

A quantized array is a node with `qvalue`, `scale` and `zero_point`, or a node whose `array` is such
a node, as qwix makes them. Nothing is imported. Wherever weights are named or counted, the node
counts as one leaf of floats, at the path of the node:

    Dense_0/kernel/array/qvalue, Dense_0/kernel/array/scale    ->    Dense_0/kernel
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params, is_mask
from jaxprune.trees import is_none, named_leaves


def is_quantized(node: Any) -> bool:
    """Whether a node of a tree is a quantized array."""
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return False
    return all(hasattr(_array(node), field) for field in ("qvalue", "scale", "zero_point"))


def _array(node: Any) -> Any:
    return getattr(node, "array", node)


def has_quantized(tree: Any) -> bool:
    """Whether a tree has a quantized array."""
    return any(map(is_quantized, jax.tree.leaves(tree, is_leaf=is_quantized)))


def dequantized(tree: Params) -> Params:
    """The tree with a float array, (qvalue - zero_point) scale, in place of each quantized array.

    The zeros of the codes are exact zeros of the weights.
    """
    return _map(lambda node: _weights(_array(node)), tree)


def owners(tree: Params) -> dict[str, str]:
    """The path of the weight that each leaf belongs to, by the path of the leaf."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: node is None or is_quantized(node))
    names = [name for name, _ in named_leaves(dequantized(tree))]
    leaves = iter(name for name, _ in named_leaves(tree))
    sizes = (len(jax.tree.leaves(node, is_leaf=is_none)) for node in nodes)
    return {next(leaves): name for name, n in zip(names, sizes, strict=True) for _ in range(n)}


def masked(tree: Params, masks: Any, mask: Callable[[Any, Any], Any]) -> Params:
    """The tree with the code of zero wherever a mask of a quantized array is False.

    Args:
      masks: like `dequantized(tree)`.
      mask: `(leaf, mask) -> leaf` of all other leaves.
    """

    def one(node: Any, keep: Any) -> Any:
        if keep is None:
            return node
        if not is_quantized(node):
            return mask(node, keep)
        if not is_mask(keep):
            raise TypeError(
                f"a quantized weight takes a mask of bool, True = kept; got {jnp.result_type(keep)}"
                ". A gate multiplies floats: quantize after it."
            )
        array = _array(node)
        zero = 0 if array.zero_point is None else _spread(array.zero_point, array.qvalue.shape)
        codes = jnp.where(keep, array.qvalue, jnp.asarray(zero, array.qvalue.dtype))
        small = dataclasses.replace(array, qvalue=codes)
        return small if array is node else dataclasses.replace(node, array=small)

    stop = lambda node: node is None or is_quantized(node)
    nodes, treedef = jax.tree.flatten(tree, is_leaf=stop)
    keeps = jax.tree.leaves(masks, is_leaf=is_none)
    return jax.tree.unflatten(treedef, map(one, nodes, keeps))


def _map(change: Callable[[Any], Any], tree: Any) -> Any:
    return jax.tree.map(
        lambda node: change(node) if is_quantized(node) else node, tree, is_leaf=is_quantized
    )


def _weights(array: Any) -> Any:
    codes, scale, zero = array.qvalue, array.scale, array.zero_point
    if isinstance(codes, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(codes.shape, scale.dtype)
    floats = codes.astype(scale.dtype)
    if zero is not None:
        floats = floats - _spread(zero, codes.shape).astype(scale.dtype)
    return floats * _spread(scale, codes.shape)


def _spread(x: Any, shape: tuple[int, ...]) -> Any:
    """An array with one entry for each tile, at full size."""
    for axis, n in enumerate(shape):
        if x.shape[axis] not in (1, n):
            x = jnp.repeat(x, n // x.shape[axis], axis=axis)
    return x
