"""Layer collapse: layers that keep no weight at all, or whose gates are all closed."""

from __future__ import annotations

import jax

from jaxprune.base import Masks, Params
from jaxprune.masks import like, present
from jaxprune.prunable.layers import folded, split_like
from jaxprune.selection.counting import n_true
from jaxprune.trees import present_leaves


def empty_layers(masks: Masks, chosen: Params = None) -> dict[str, jax.Array]:
    """Whether each layer keeps nothing: {path: bool scalar}; under `vmap`, (seeds,) of a stack.

        [path for path, is_empty in empty_layers(masks).items() if is_empty]
        jax.vmap(empty_layers)(stack)         # of many seeds

    No signal passes a layer without weights, unless a connection skips it. `report` says how much
    the other layers keep.

    Args:
      masks: bool, None where never pruned; or gates, closed where they are 0.
      chosen: the result of the `prunable` of these masks, such as `kernels(params)`: where it has
        layers in the place of a stack, each of them counts here. Masks that `select` makes have
        these layers already.

    Raises:
      ValueError: if all masks are None.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> masks = {'body': jnp.array([[True, False]]), 'head': jnp.zeros((2, 1), bool)}
    >>> jp.at_init.empty_layers(masks)
    {'body': Array(False, dtype=bool), 'head': Array(True, dtype=bool)}
    """
    present(masks)
    masks = masks if chosen is None else split_like(like(masks, folded(chosen)), chosen)
    return {path: n_true(m != 0)[0] == 0 for path, m in present_leaves(masks) if m.size}
