"""The state of a training in blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import optax

from jaxprune.base import Params
from jaxprune.prunable.layout import Layout
from jaxprune.trees import map_named


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """The blocks of inputs that the slots of a kernel read, as in `Blocks`.

    Attributes:
      inputs: int32 (blocks of outputs, slots).
      shape: (in, out) of the kernel as a matrix; static.
      leaf: the shape of the leaf; static.
      layout: the axes of the leaf that are inputs, and its outputs; static.
    """

    inputs: jax.Array
    shape: tuple[int, int] = field(metadata={"static": True})
    leaf: tuple[int, ...] = field(metadata={"static": True})
    layout: Layout = field(metadata={"static": True})


class BlockState(NamedTuple):
    """State of `block_training`.

    Attributes:
      step: int32 scalar, how many steps were made.
      params: like the params; a kernel in blocks is (blocks of outputs, slots, h, w).
      places: by the name of the leaf, of each kernel in blocks.
      mask_state: of the transform that `in_blocks` was given; its masks are bool (blocks of
        outputs, blocks of inputs), by the name of the leaf.
      inner_state: of the optimizer, on `params`: moments are in blocks too.
    """

    step: jax.Array
    params: Params
    places: dict[str, Places]
    mask_state: Any
    inner_state: optax.OptState


def map_blocks(f: Callable[..., Any], params: Params, of: dict[str, Any]) -> Params:
    """`f(leaf, of[name])` of the leaves that `of` names; the others as they are."""
    return map_named(lambda name, x: f(x, of[name]) if name in of else x, params)


def with_leaves_of(params: Params, leaves: dict[str, Any]) -> Params:
    """`params` with these leaves, by name."""
    return map_named(lambda name, _: leaves[name], params)
