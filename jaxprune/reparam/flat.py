"""All chosen leaves as one sequence of numbers, in the order of the tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.prunable.layers import folded
from jaxprune.reparam.reparameterization import check_floats


def chosen_of(what: str, params: Params, prunable: Callable[[Params], Params]) -> Any:
    """The leaves of the params that `prunable` chooses, None for the others; stacks are whole.

    Raises:
      TypeError: for a leaf that is not of floats.
      ValueError: if no leaf is chosen.
    """
    chosen = folded(prunable(params))
    check_floats(what, chosen, "share", "can be made of shared numbers")
    return chosen


def joined(leaves: Sequence[jax.Array]) -> jax.Array:
    """All entries of all leaves, float32 (n,)."""
    return jnp.concatenate([leaf.ravel().astype(jnp.float32) for leaf in leaves])


def parts(sequence: jax.Array, shapes: Sequence[tuple[int, ...]]) -> Iterator[jax.Array]:
    """The inverse of `joined`: an array of each shape, in float32."""
    start = 0
    for shape in shapes:
        size = math.prod(shape)
        yield sequence[start : start + size].reshape(shape)
        start += size
