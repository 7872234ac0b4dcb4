"""Sanity controls: does it matter which weights of a layer are kept, and their values?"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.base import Masks, Params, is_mask
from jaxprune.keys import check_key, key_first
from jaxprune.masks import apply_masks
from jaxprune.scores import random
from jaxprune.selection.counting import n_true
from jaxprune.selection.drop_grow import grow
from jaxprune.trees import map_scored, present_leaves


def shuffle(key: jax.Array, masks: Masks) -> Masks:
    """Random masks that keep as many weights of each leaf as `masks` do, exactly; None where None.

    It tests whether the layer-wise sparsities alone explain a method. Groups that were pruned
    together, such as those of `nm` or `channel`, are not kept together.

    Args:
      key: a key of `jax.random`; under `vmap`, one a seed.
      masks: bool, None where never pruned.

    Raises:
      TypeError: if `key` is no key, or a mask is not bool.

    Reference: Frankle et al., 2021, Pruning Neural Networks at Initialization: Why Are We Missing
    the Mark?; Su et al., 2020, Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> masks = jp.tickets.shuffle(jax.random.key(0), {'kernel': jnp.arange(9) < 4, 'bias': None})
    >>> int(masks['kernel'].sum())
    4
    """
    check_key("shuffle", key)
    for path, mask in present_leaves(masks):
        if not is_mask(mask):
            raise TypeError(
                f"shuffle needs masks of bool, True = kept; that of '{path}' is "
                f"{getattr(mask, 'dtype', type(mask).__name__)}."
            )
    if not jax.tree.leaves(masks):
        return masks
    empty = map_scored(jnp.zeros_like, masks)
    return grow(empty, random(key)(masks), map_scored(lambda m: n_true(m)[0], masks))


@key_first
def reinitialize(key: jax.Array, init: Callable[[jax.Array], Params], masks: Masks) -> Params:
    """Params drawn anew under the same masks: `apply_masks(init(key), masks)`.

    It tests whether the masks alone explain a method. Take another key than that of the first
    weights: the same key would draw the same network.

    Args:
      key: a key of `jax.random`; under `vmap`, one a seed.
      init: `key -> params`, such as `lambda key: model.init(key, x)["params"]`.
      masks: bool, None where never pruned.

    Raises:
      TypeError: if `key` is no key.
      ValueError: if the masks do not fit the params; it names the leaf.

    Reference: Frankle and Carbin, 2019, The Lottery Ticket Hypothesis: Finding Sparse, Trainable
    Neural Networks; Frankle et al., 2021, Pruning Neural Networks at Initialization: Why Are We
    Missing the Mark?
    """
    return apply_masks(init(key), masks)
