"""What pruning each leaf alone does to the outputs, by a quadratic in their gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.allocation.layerwise import uniform
from jaxprune.base import Params, Pattern, arguments, is_int
from jaxprune.one_shot import select
from jaxprune.pattern import unstructured
from jaxprune.prunable.rules import kernels
from jaxprune.scores import saliency
from jaxprune.trees import named_leaves

DAMPING = 1e-7


def output_gradient(fn: Callable[..., Any], params: Params, batches: Iterable[Any]) -> Params:
    """The gradient of `mean(fn(params, x)^2)`, the mean over batches; labels play no part.

    With it `jp.saliency(params, grads=...)` scores weights, and `jp.block(32, 32, by=jnp.mean)`
    blocks of them.

    Args:
      fn: `(params, *inputs) -> array`, such as logits.
      params: pytree of float arrays.
      batches: inputs of `fn`; a tuple is several arguments.

    Returns:
      Like the params.

    Raises:
      ValueError: without a batch.

    Reference: Xu et al., 2024, LPViT: Low-Power Semi-structured Pruning for Vision Transformers.
    """
    square = lambda params, inputs: jnp.mean(jnp.square(fn(params, *inputs).astype(jnp.float32)))
    gradient, total, count = jax.jit(jax.grad(square)), None, 0
    for inputs in arguments("output_gradient", batches):
        grads = gradient(params, inputs)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        count += 1
    return jax.tree.map(lambda x: x / count, total)


def quadratic_curves(
    params: Params,
    grads: Params,
    pattern: Pattern = unstructured,
    points: int = 100,
    prunable: Callable[[Params], Params] = kernels,
) -> dict[str, np.ndarray]:
    """By leaf an estimate of the distortion, if only this leaf is pruned by `saliency`.

        mean((d g)^2) + ((g'd)^2 + 1e-7 |d|^2) / 2,   d = pruned weights - weights

    Entry i of a curve is at the sparsity i / points; the last, at 1, has the leaf all zero. They
    are what `allocation.common_slope` reads. One program, without a pass of the network.

    Args:
      params: pytree of float arrays.
      grads: like the params, of `output_gradient`.
      pattern: which entries of a leaf go together, such as `jp.block(32, 32, by=jnp.mean)`.
      points: the steps from 0 to 1, at least 2.
      prunable: `params -> tree` with None where a leaf is never pruned.

    Returns:
      {name of a leaf: float64 (points + 1,)}; the layers of a stack are apart.

    Raises:
      ValueError: for fewer than 2 points, or a pattern that does not take every sparsity.

    Reference: Xu et al., 2024, LPViT: Low-Power Semi-structured Pruning for Vision Transformers;
    the first term is in the authors' code only.
    """
    if not is_int(points, 2):
        raise ValueError(f"quadratic_curves: points is how many steps, at least 2; got {points!r}.")

    @jax.jit
    def curves(params: Params, grads: Params) -> dict[str, jax.Array]:
        weights, slopes = prunable(params), prunable(grads)
        scores = saliency(weights, grads=slopes)
        leaves, of_leaf = named_leaves(weights), dict(named_leaves(slopes))

        def at(sparsity: jax.Array) -> dict[str, jax.Array]:
            masks = dict(named_leaves(select(scores, uniform, sparsity, pattern)))
            return {
                name: distortion(jnp.where(masks[name], 0, -w), of_leaf[name])
                for name, w in leaves
                if w is not None
            }

        found = jax.lax.map(at, jnp.arange(points) / points)
        end = {name: distortion(-w, of_leaf[name]) for name, w in leaves if w is not None}
        return {name: jnp.append(found[name], x) for name, x in end.items()}

    return {name: np.asarray(x, np.float64) for name, x in curves(params, grads).items()}


def distortion(change: jax.Array, gradient: jax.Array) -> jax.Array:
    """The estimate for one leaf whose weights change by `change`; float32."""
    d, g = change.astype(jnp.float32), gradient.astype(jnp.float32)
    quadratic = jnp.square(jnp.sum(g * d)) + DAMPING * jnp.sum(jnp.square(d))
    return jnp.mean(jnp.square(d * g)) + quadratic / 2
