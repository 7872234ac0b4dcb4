"""SET: drop by magnitude, grow at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import erk
from jaxprune.base import Allocation, Masks, MaskTransform, Params
from jaxprune.keys import key_first
from jaxprune.methods.dynamic import random_start, regrow, smallest
from jaxprune.prunable.rules import kernels
from jaxprune.scores import magnitude, random
from jaxprune.selection.deferred import defer
from jaxprune.selection.drop_grow import counts, drop
from jaxprune.selection.uncut import elementwise


@key_first
def set(
    key: jax.Array,
    sparsity: float,
    fraction: float | optax.Schedule = 0.3,
    allocation: Allocation = erk,
    prunable: Callable[[Params], Params] = kernels,
    two_sided: bool = False,
) -> MaskTransform:
    """Sparse evolutionary training: each update rewires a fraction of every leaf at random.

        k = floor(fraction(step) * kept), for each leaf
        drop the k smallest |w|, grow k others at random

    Use it as `rigl`. Its paper has `er` for the allocation, the output layer dense
    (`per_layer({'head/*': 0.0}, rest=er)`), 0.3 for the fraction, and an update after every epoch,
    the first too: `every(epoch, set(...), start=epoch)`.

    Args:
      key: a key of `jax.random`, for the first masks and for growth; under `vmap`, one a seed.
      sparsity: the fraction pruned, in [0, 1); an integer is how many weights.
      fraction: of each leaf's kept weights, dropped and grown at an update, in [0, 1], or a
        schedule of it over steps.
      allocation: how much of each leaf.
      prunable: `params -> params` with None in place of what is never pruned.
      two_sided: as in the paper, drop this fraction of the negative kept weights, and of the
        others, separately.

    Raises:
      ValueError: if sparsity or fraction are out of range; (in init) if a leaf would keep no
        weight.

    Reference: Mocanu et al., 2018, Scalable Training of Artificial Neural Networks with Adaptive
    Sparse Connectivity inspired by Network Science.
    """
    start_key, grow_key = jax.random.split(key)
    return MaskTransform(
        init=random_start(start_key, sparsity, allocation, prunable),
        update=regrow(
            closest_to_zero if two_sided else smallest, random(grow_key), fraction, prunable
        ),
    )


def closest_to_zero(masks: Masks, params: Params, fraction: Any) -> Masks:
    """Drops the fraction closest to zero of the kept weights of each sign."""
    signs = (lambda mask, w: mask & (w >= 0)), (lambda mask, w: mask & (w < 0))
    sides = [elementwise(sign, masks, params) for sign in signs]
    worth = defer(magnitude, params)
    left = [drop(side, worth, counts(side, fraction)) for side in sides]
    return elementwise(jnp.logical_or, *left)
