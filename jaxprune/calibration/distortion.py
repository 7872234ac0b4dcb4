"""What pruning each leaf alone does to the outputs of a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params, arguments, is_int
from jaxprune.masks import merged
from jaxprune.pattern import unstructured
from jaxprune.prunable.rules import kernels
from jaxprune.scores import magnitude
from jaxprune.trees import named_leaves, with_leaves


def distortion_curves(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    points: int = 100,
    prunable: Callable[[Params], Params] = kernels,
) -> dict[str, np.ndarray]:
    """By leaf the mean squared change of the outputs, if only this leaf is pruned by magnitude.

    Entry i of a curve is at the sparsity i / points; the last, at 1, has the leaf all zero. They
    are what `allocation.least_distortion` adds up. One program is compiled for all leaves, and a
    short one for each shape; another call with the same `fn` compiles nothing.

    Args:
      fn: `(params, *inputs) -> array`, such as logits.
      params: pytree of arrays.
      batches: inputs of `fn`, all of one shape; a tuple is several arguments. Noise will do.
      points: the steps from 0 to 1, at least 2.
      prunable: `params -> tree` with None where a leaf is never pruned.

    Returns:
      {name of a leaf: float64 (points + 1,)}; the layers of a stack are apart.

    Raises:
      ValueError: without a batch, or for fewer than 2 points.

    Reference: Xu et al., 2023, Efficient Joint Optimization of Layer-Adaptive Weight Pruning in
    Deep Neural Networks.
    """
    if not is_int(points, 2):
        raise ValueError(
            f"distortion_curves: points is how many steps, at least 2; got {points!r}."
        )
    inputs = list(arguments("distortion_curves", batches))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *inputs)
    chosen = prunable(params)
    leaves = named_leaves(chosen)
    dense = _outputs(fn, params, stacked)

    def distortion(place: int, sparsity: float) -> jax.Array:
        pruned = _pruned(leaves[place][1], sparsity)
        part = [pruned if i == place else None for i in range(len(leaves))]
        return _change(fn, merged(params, with_leaves(chosen, part)), stacked, dense)

    at = np.arange(points + 1, dtype=np.float32) / points
    return {
        name: np.array([distortion(place, sparsity) for sparsity in at], np.float64)
        for place, (name, leaf) in enumerate(leaves)
        if leaf is not None
    }


@partial(jax.jit, static_argnums=0)
def _outputs(fn: Callable[..., Any], params: Params, batches: Any) -> jax.Array:
    return jax.lax.map(lambda one: fn(params, *one), batches)


@partial(jax.jit, static_argnums=0)
def _change(fn: Callable[..., Any], params: Params, batches: Any, dense: jax.Array) -> jax.Array:
    """The mean squared change of the outputs."""
    square = lambda one: jnp.mean(jnp.square(_wide(fn(params, *one[0])) - _wide(one[1])))
    return jax.lax.map(square, (batches, dense)).mean()


@jax.jit
def _pruned(leaf: jax.Array, sparsity: jax.Array) -> jax.Array:
    """A leaf pruned by magnitude; all zero at 1."""
    mask = unstructured(magnitude({"w": leaf})["w"], sparsity) & (sparsity < 1)
    return jnp.where(mask, leaf, 0)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
