"""What pruning each leaf alone does to the outputs of a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params, is_int
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
    are what `allocation.least_distortion` adds up. One program a leaf, for all points and batches.

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
    inputs = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not inputs:
        raise ValueError("distortion_curves: batches is empty; give it at least one batch.")
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *inputs)
    chosen = prunable(params)
    leaves = named_leaves(chosen)
    dense = jax.jit(lambda params, x: jax.lax.map(lambda one: fn(params, *one), x))(params, stacked)

    def curve(place: int) -> Callable[..., jax.Array]:
        @jax.jit
        def of(params: Params, x: Any, dense: jax.Array) -> jax.Array:
            only = [leaf if i == place else None for i, (_, leaf) in enumerate(leaves)]
            leaf = leaves[place][1]

            def at(sparsity: jax.Array) -> jax.Array:
                mask = unstructured(magnitude({"w": leaf})["w"], sparsity)
                mask = jnp.where(sparsity < 1, mask, False)
                part = [None if w is None else jnp.where(mask, w, 0) for w in only]
                pruned = merged(params, with_leaves(chosen, part))
                change = jax.lax.map(lambda one: _square(fn(pruned, *one[0]), one[1]), (x, dense))
                return change.mean()

            return jax.lax.map(at, jnp.arange(points + 1) / points)

        return of

    return {
        name: np.asarray(curve(place)(params, stacked, dense), np.float64)
        for place, (name, leaf) in enumerate(leaves)
        if leaf is not None
    }


def _square(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))
