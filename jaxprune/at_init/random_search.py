"""Random search: of many random masks those with the lowest loss before training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.allocation.layerwise import erk
from jaxprune.at_init.rounds import Loss, Prunable
from jaxprune.base import Allocation, Masks, Params, check_allocation, check_sparsity, is_int
from jaxprune.keys import check_key, key_first
from jaxprune.losses import check_loss
from jaxprune.masks import apply_masks
from jaxprune.one_shot import select
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.scores import random

_AT_ONCE = 8  # candidates that are evaluated side by side


@key_first
def random_search(
    key: jax.Array,
    loss: Loss,
    params: Params,
    sparsity: Any,
    candidates: int = 100,
    allocation: Allocation = erk,
    prunable: Prunable = kernels,
) -> Masks:
    """The best of many random masks: that with the lowest loss under the first weights.

        masks_i = select(random(key_i), allocation, sparsity),   the i of least loss(masks_i params)

    A baseline for all that searches masks. With one candidate it is `random` pruning. A candidate
    whose loss is nan is the last. The candidates are one compiled loop; masks are drawn again from
    their key, so that those of one batch of candidates are in memory, not all.

    Args:
      key: a key of `jax.random`; under `vmap`, one a seed.
      loss: `params -> scalar`, on a batch that the caller draws, such as one of held-out examples.
      params: the first weights.
      sparsity: the fraction pruned, in [0, 1), or, as an integer, how many weights; may be traced.
      candidates: how many masks are drawn, at least 1.
      allocation: how much of each leaf, the same for all candidates where it reads shapes alone.
      prunable: `params -> params` with None in place of what is never pruned.

    Returns:
      Masks like `params`, bool, None where never pruned.

    Raises:
      ValueError: if the loss returns no scalar, the sparsity or the number of candidates is out of
        range, or nothing is prunable.
      TypeError: if `key` is no key.

    Reference: Farahani, 2024, Random Search as a Baseline for Sparse Neural Network Architecture
    Search. It searches among neurons; here among single weights.
    """
    check_key("random_search", key)
    check_loss("random_search", loss, params)
    check_sparsity(sparsity)
    check_allocation(allocation)
    if not is_int(candidates, 1):
        raise ValueError(
            "random_search: candidates is how many masks are drawn, at least 1; got "
            f"{candidates!r}."
        )
    chosen = prunable(params)
    check_any(chosen, params)

    def masks(key: jax.Array) -> Masks:
        return folded(select(random(key)(chosen), allocation, sparsity))

    def price(key: jax.Array) -> jax.Array:
        value = loss(apply_masks(params, masks(key)))
        return jnp.where(jnp.isnan(value), jnp.inf, value)

    keys = jax.random.split(key, candidates)
    prices = lax.map(price, keys, batch_size=min(_AT_ONCE, candidates))
    return masks(keys[jnp.argmin(prices)])
