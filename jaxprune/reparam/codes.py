"""The codes of weights that have codebooks, and what codes and codebooks take."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks
from jaxprune.masks import like
from jaxprune.prunable.layers import folded
from jaxprune.reparam import grid
from jaxprune.reparam.codebook import SharedValues, nearest_codes
from jaxprune.reparam.jlcm import LearnedCodes, places
from jaxprune.reparam.reparameterization import Size, check_learned, size_of
from jaxprune.trees import map_scored


def codes(learned: SharedValues | LearnedCodes) -> Any:
    """The code of each weight, uint8 like the weights; None where a leaf has no codebook.

    `values[code]` is the weight in use, but for pruned weights: their codes mean nothing. Codes of
    `jlcm` are places in the ascending values.

    Args:
      learned: what `codebook(...).init` or `jlcm(...).init` makes.

    Raises:
      TypeError: for anything else.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> learned = jp.reparam.codebook(1).init({'kernel': jnp.array([[-2., -1., 3.]])})
    >>> jp.reparam.codes(learned)
    {'kernel': Array([[0, 0, 1]], dtype=uint8)}
    """
    if isinstance(learned, LearnedCodes):
        code = lambda value, t: places(t, value.shape[-1]).astype(jnp.uint8)
        return folded(map_scored(code, learned.values, learned.positions))
    return folded(nearest_codes(check_learned("codebook", SharedValues, learned)))


def codebook_size(learned: SharedValues | LearnedCodes, masks: Masks = None) -> Size:
    """What a network with codebooks takes: codes, codebooks, masks, and all that has no codebook.

    A code has the bits of its codebook, a value is a float32, and a mask takes a bit a weight; only
    kept weights have a code. Coded by their frequencies, codes and masks take less:
    `coded_size(codes(learned), masks)`.

    Args:
      learned: what `codebook(...).init` or `jlcm(...).init` makes; shapes are enough without masks.
      masks: like the params, bool, None where never pruned; None: no weight is pruned.

    Raises:
      TypeError: for another tree.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> learned = jp.reparam.codebook(2).init({'kernel': jnp.ones((8, 4)), 'bias': jnp.ones(4)})
    >>> jp.reparam.codebook_size(learned)
    Size(numbers=40, bits=320)
    """
    if not isinstance(learned, LearnedCodes):
        check_learned("codebook", SharedValues, learned)
    weights, values = learned.weights, learned.values
    leaves, table = grid.leaves_of(weights, values), size_of(values)
    pruned = 0
    if masks is not None:
        here = jax.tree.leaves(grid.leaves_of(like(masks, weights), values))
        pruned = sum(int(np.sum(~np.asarray(mask))) for mask in here)
    everything, floats = size_of(weights), size_of(leaves)
    width = (jax.tree.leaves(values)[0].shape[-1] - 1).bit_length()
    coded = width * (floats.numbers - pruned)
    return Size(
        everything.numbers - pruned + table.numbers,
        everything.bits - floats.bits + coded + table.bits + size_of(masks).bits,
    )
