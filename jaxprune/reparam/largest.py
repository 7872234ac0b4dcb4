"""The masks of the N largest of M weights as they are now, for methods of N:M training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxprune.allocation.layerwise import uniform
from jaxprune.base import Params
from jaxprune.one_shot import select
from jaxprune.pattern import nm
from jaxprune.prunable.layers import folded
from jaxprune.scores import magnitude


def n_of_m(
    what: str, n: int, m: int, prunable: Callable[[Params], Params]
) -> Callable[[Params], tuple[Any, Any]]:
    """`params -> (the leaves that are pruned, their masks)`, without a gradient.

    Raises:
      ValueError: unless 1 <= n < m; (when called) if there is nothing to prune, or as `nm`.
    """
    pattern = nm(n, m)
    if n == m:
        raise ValueError(f"{what}: {n} of {m} prunes nothing; n is below m.")

    def masks_of(params: Params) -> tuple[Any, Any]:
        chosen = prunable(params)
        if not jax.tree.leaves(chosen):
            raise ValueError(f"{what}: there is nothing to prune, every leaf is None.")
        still = jax.tree.map(lax.stop_gradient, chosen)
        masks = select(magnitude(still), uniform, 1 - n / m, pattern)
        return folded(chosen), folded(masks)

    return masks_of
