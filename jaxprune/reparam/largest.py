"""The masks of the N largest of M weights as they are now, for methods of N:M training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxprune.allocation.layerwise import uniform
from jaxprune.base import Params, Pattern
from jaxprune.one_shot import select
from jaxprune.pattern import OF_MATRIX, ON_MATRICES, nm, rank_in_group
from jaxprune.prunable.layers import folded
from jaxprune.scores import magnitude


def n_of_m(
    what: str, n: int, m: int, prunable: Callable[[Params], Params], outputs: bool = False
) -> Callable[..., tuple[Any, Any]]:
    """`params, now=n -> (the leaves that are pruned, their masks)`, without a gradient.

    The masks keep `now` of every m: n, or another number of 1 to m, which may be traced.

    Args:
      outputs: whether groups are along the outputs; else along the inputs.

    Raises:
      ValueError: unless 1 <= n < m; (when called) if there is nothing to prune, or as `nm`.
    """
    pattern = _of_outputs(n, m) if outputs else nm(n, m)
    if n == m:
        raise ValueError(f"{what}: {n} of {m} prunes nothing; n is below m.")

    def masks_of(params: Params, now: jax.Array | int = n) -> tuple[Any, Any]:
        chosen = prunable(params)
        if not jax.tree.leaves(chosen):
            raise ValueError(f"{what}: there is nothing to prune, every leaf is None.")
        still = jax.tree.map(lax.stop_gradient, chosen)
        of_now = pattern if now is n else _with(pattern, now, m)
        masks = select(magnitude(still), uniform, 1 - n / m, of_now)
        return folded(chosen), folded(masks)

    return masks_of


def _with(pattern: Pattern, now: jax.Array | int, m: int) -> Pattern:
    """`pattern`, and its checks, with another number of entries that each group keeps."""

    def of_matrix(scores: jax.Array, sparsity: Any) -> jax.Array:
        jax.eval_shape(lambda x: getattr(pattern, OF_MATRIX)(x, sparsity), scores)
        return rank_in_group(scores, m, -2) < now

    setattr(of_matrix, ON_MATRICES, getattr(pattern, ON_MATRICES))
    return of_matrix


def _of_outputs(n: int, m: int) -> Pattern:
    """`nm` along the outputs of a leaf, which may be several axes."""
    last = nm(n, m, axis=-1)

    def of_matrix(scores: jax.Array, sparsity: Any) -> jax.Array:
        return last(scores, sparsity)

    setattr(of_matrix, ON_MATRICES, f"nm({n}, {m}) of the outputs")
    return of_matrix
