"""Random directions in the space of params, filter by filter as long as the params."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Masks, Params, widened
from jaxprune.masks import apply_masks, merged
from jaxprune.prunable.layers import split_like
from jaxprune.prunable.layout import axes_of
from jaxprune.prunable.rules import kernels, layouts_of
from jaxprune.trees import map_named


def random_direction(
    key: jax.Array,
    params: Params,
    masks: Masks | None = None,
    *,
    axis: int | None = None,
    moving: Callable[[Params], Params] = kernels,
) -> Params:
    """A filter-normalized random direction: each filter as long as that of the params.

        d_j = z_j |w_j| / |z_j|,   z ~ N(0, 1), both masked first; filter j makes output j

    So steps of one size mean the same in every layer, and rescaling a filter (as ReLU and norms
    allow) changes no picture. The direction is 0 where a weight is pruned or does not move.

    Args:
      params: pytree of floating-point arrays.
      masks: like the params, bool, None where never pruned; None for no masks at all.
      axis: an axis of each leaf whose slices are filters. None: the outputs, as
        `jaxprune.prunable.layout` finds them; those of attention's query, key and value are
        heads and their features.
      moving: `params -> params` with None for leaves that stay; by default biases and norms do.

    Raises:
      ValueError: if masks and params differ, a moving leaf has no such axis, or which axes are
        outputs can't be known; it names the leaf.

    Reference: Li et al., 2018, Visualizing the Loss Landscape of Neural Nets.
    """
    noise = optax.tree.random_like(key, params)
    if masks is not None:
        params, noise = apply_masks(params, masks), apply_masks(noise, masks)
    moves = moving(params)
    layouts = layouts_of("random_direction", moves) if axis is None else {}

    def filter_axes(name: str, w: Any) -> tuple[int, ...]:
        """The axes of a leaf of which each index is a filter."""
        if axis is None:
            return axes_of(layouts[name].outputs, w.ndim)
        if not -w.ndim <= axis < w.ndim:
            raise ValueError(
                f"random_direction: '{name}' has shape {w.shape}, and no axis {axis} of "
                "filters. Choose another axis, or keep the leaf in place with moving=..."
            )
        return (axis % w.ndim,)

    def normalized(name: str, _: Any, w: Any, z: Any) -> Any:
        filters = filter_axes(name, w)
        others = tuple(a for a in range(w.ndim) if a not in filters)
        length = lambda t: jnp.sqrt(jnp.sum(jnp.square(widened(t)), others, keepdims=True))
        drawn = length(z)
        scale = jnp.where(drawn > 0, length(w) / jnp.where(drawn > 0, drawn, 1), 0)
        return (widened(z) * scale).astype(z.dtype)

    directions = map_named(normalized, moves, split_like(params, moves), split_like(noise, moves))
    return merged(jax.tree.map(jnp.zeros_like, params), directions)
