"""The layout of a kernel: which of its axes are inputs, outputs, spatial, or a stack of layers.

Fan-in and fan-out, groups of N:M, blocks and filters all mean the kernel as (spatial..., inputs,
outputs). A matrix is one, and so is flax's kernel of a convolution. Those of attention have heads:

    query, key, value    (inputs, heads, features)
    out                  (heads, features, outputs)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Axes = int | Sequence[int]


class Layout(NamedTuple):
    """What the axes of a leaf are; those that are not named are spatial.

    Attributes:
      inputs: the axes that a product contracts with; one, several, or none: ().
      outputs: the axes of what comes out.
      stacked: the axes along which each index is a separate layer, as `nn.scan` makes them.
      why: None; or why inputs and outputs are not known, in words.
    """

    inputs: Axes = ()
    outputs: Axes = ()
    stacked: Axes = ()
    why: str | None = None


def axes_of(axes: Axes, rank: int) -> tuple[int, ...]:
    """The axes, one or several, counted from the front."""
    several = (axes,) if isinstance(axes, int) else tuple(axes)
    return tuple(axis % rank for axis in several)


def spatial(layout: Layout, rank: int) -> tuple[int, ...]:
    """The axes of a leaf of one layer that are neither inputs nor outputs."""
    named = axes_of(layout.inputs, rank) + axes_of(layout.outputs, rank)
    return tuple(axis for axis in range(rank) if axis not in named)


# --- what a name says ----------------------------------------------------------------------------

_CONVOLUTION = re.compile(r".*conv.*|.*\bdown_?sample.*|.*shortcut.*", re.IGNORECASE)
_KERAS_TRANSPOSE = re.compile(r"conv\dd_transpose.*")  # (window, outputs, inputs)
_PROJECTED = re.compile(r"query|key|value")
# these have heads, experts or letters in an order that no name tells
_UNTOLD = re.compile(r".*(einsum|general|attn|attention|qkv|expert|moe).*", re.IGNORECASE)
_EITHER_WAY = re.compile(r"weight(_.*)?")  # (outputs, inputs, ...) in equinox and torch
_WINDOW = 16  # a larger window that is no square may be inputs


def named_layout(leaf_name: str, shape: Sequence[int]) -> Layout:
    """The layout of a leaf of one layer by its name and shape; `why` says what is missing."""
    rank = len(shape)
    *parents, leaf = [part for part in leaf_name.split("/") if not part.isdecimal()] or [""]
    parent = parents[-1] if parents else ""
    if rank < 2:
        return Layout((), tuple(range(rank)))
    as_flax = Layout(rank - 2, rank - 1)
    if _EITHER_WAY.fullmatch(leaf):
        return Layout(why="what is called `weight` has its outputs first in some libraries")
    if rank == 2:
        return as_flax
    if rank == 3 and leaf == "kernel" and _PROJECTED.fullmatch(parent):
        return Layout(0, (1, 2))
    if rank == 3 and leaf == "kernel" and parent in ("out", "attention_output"):  # Flax; Keras
        return Layout((0, 1), 2)
    if _KERAS_TRANSPOSE.fullmatch(parent):
        return Layout(rank - 1, rank - 2)
    if _CONVOLUTION.fullmatch(parent):
        return as_flax
    if rank == 3:
        return Layout(why="it may have a window, heads, or be a stack of layers")
    if rank > 5 or any(_UNTOLD.fullmatch(part) for part in (*parents, leaf)):
        return Layout(why="its name and shape do not tell")
    window = shape[:-2]
    if len({*window}) > 1 and max(window) > _WINDOW:
        return Layout(why=f"{'x'.join(map(str, window))} is an odd window, and may be inputs")
    return as_flax


# --- a leaf whose layout was given ---------------------------------------------------------------


class _InPlace:
    """The key, without a name, of a kernel in its node."""

    def __str__(self) -> str:
        return ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _InPlace)

    def __hash__(self) -> int:
        return hash(_InPlace)


IN_PLACE = _InPlace()


@jax.tree_util.register_pytree_with_keys_class
class Kernel:
    """A leaf whose layout was given: a node that holds it as (spatial..., inputs, outputs).

    Attributes:
      matrix: the leaf, its inputs and outputs each made one axis, last.
      layout: as it was given.
      shape: the shape of the leaf.
    """

    def __init__(self, matrix: Any, layout: Layout, shape: tuple[int, ...]):
        self.matrix, self.layout, self.shape = matrix, layout, shape

    def split(self, leaf: Any) -> Kernel:
        """Another leaf of that shape in the same way."""
        return Kernel(as_matrix(leaf, self.layout), self.layout, self.shape)

    def folded(self) -> Any:
        """The leaf as it was."""
        return from_matrix(self.matrix, self.layout, self.shape)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.folded(), dtype)

    def tree_flatten_with_keys(self) -> tuple:
        return ((IN_PLACE, self.matrix),), (self.layout, self.shape)

    @classmethod
    def tree_unflatten(cls, aux: tuple, children: tuple) -> Kernel:
        return cls(children[0], *aux)


def layout_of(what: str, leaf_name: str, shape: Sequence[int], is_said: bool) -> Layout:
    """The layout of a leaf by its name, or of one in a `Kernel`, where it was said.

    Raises:
      ValueError: if it can't be known. It names the leaf, its shape, and the way out.
    """
    rank = len(shape)
    if is_said and rank > 1:  # spatial axes first, inputs, outputs
        return Layout(rank - 2, rank - 1)
    layout = named_layout(leaf_name, shape)
    if layout.why:
        said = "{" + repr(leaf_name) + ": jp.Layout(inputs=..., outputs=...)}"
        raise ValueError(
            f"{what} needs to know which axes of '{leaf_name}', shape {tuple(shape)}, are inputs "
            f"and which are outputs: {layout.why}. Say it, with the numbers of the axes: "
            f"prunable=jp.matching(layouts={said}), or stacked=... where each index of an axis is "
            "a layer of its own; or give the argument `axis`, where there is one; or leave it out "
            "with prunable=jp.matching(exclude=...)."
        )
    return layout


def matrix_shape(layout: Layout, shape: Sequence[int]) -> tuple[int, ...]:
    """(spatial..., inputs, outputs) of a leaf of that shape; of less than two axes, as it is."""
    rank = len(shape)
    if rank < 2:
        return tuple(shape)
    size = lambda axes: math.prod(shape[axis] for axis in axes_of(axes, rank))
    window = [shape[axis] for axis in spatial(layout, rank)]
    return (*window, size(layout.inputs), size(layout.outputs))


def as_matrix(x: Any, layout: Layout) -> Any:
    """`x` as (spatial..., inputs, outputs); of less than two axes, as it is."""
    rank, shape = len(x.shape), matrix_shape(layout, x.shape)
    if rank < 2:
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, x.dtype)
    order = _order(layout, rank)
    moved = x if order == tuple(range(rank)) else jnp.transpose(x, order)
    return moved if moved.shape == shape else moved.reshape(shape)


def from_matrix(matrix: Any, layout: Layout, shape: Sequence[int]) -> Any:
    """The inverse of `as_matrix`."""
    rank = len(shape)
    if rank < 2:
        return matrix
    if isinstance(matrix, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(tuple(shape), matrix.dtype)
    order = _order(layout, rank)
    x = matrix.reshape([shape[axis] for axis in order])
    return x if order == tuple(range(rank)) else jnp.transpose(x, np.argsort(order).tolist())


def _order(layout: Layout, rank: int) -> tuple[int, ...]:
    inputs, outputs = axes_of(layout.inputs, rank), axes_of(layout.outputs, rank)
    return (*spatial(layout, rank), *inputs, *outputs)
