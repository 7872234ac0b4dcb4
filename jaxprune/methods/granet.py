"""GraNet: gradual pruning over all layers, and regrowth by gradient in each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import erk, global_threshold
from jaxprune.base import (
    Allocation,
    MaskState,
    MaskTransform,
    Params,
    is_known,
    shown,
)
from jaxprune.keys import key_first
from jaxprune.masks import merged, prunable_parts
from jaxprune.methods.dynamic import random_start, regrow, smallest
from jaxprune.one_shot import select
from jaxprune.prunable.rules import kernels
from jaxprune.schedules import check_schedule, first_value, sparsity_at
from jaxprune.scores import gradient, magnitude
from jaxprune.selection.deferred import defer
from jaxprune.selection.drop_grow import among
from jaxprune.selection.uncut import elementwise


@key_first
def granet(
    key: jax.Array,
    sparsity: optax.Schedule,
    fraction: float | optax.Schedule = 0.5,
    allocation: Allocation = erk,
    prunable: Callable[[Params], Params] = kernels,
) -> MaskTransform:
    """Gradual magnitude pruning with regeneration: each update prunes, then rewires what is left.

        prune the smallest |w| of all leaves together, to sparsity(step)
        k = ceil(fraction(step) * kept), for each leaf
        drop the k smallest |w|, grow the k largest |dL/dw| among all that are then pruned

    Dense to sparse if the schedule starts at 0, sparse to sparse if it starts higher: then the
    first masks are random, and as in `rigl` you mask the first weights. Where the schedule is
    level, updates only rewire.

        sparsity = optax.polynomial_schedule(0.5, 0.95, power=3, transition_steps=steps // 2)
        fraction = optax.cosine_decay_schedule(0.5, steps, alpha=0.01)
        masks = every(1_000, granet(key, sparsity, fraction), start=1_000)
        tx = sparsify(optax.sgd(0.1, 0.9), masks)

    With `start` the first masks train before the first update. The authors' code prunes after the
    optimizer's step, with the gradient of that step; here masks change first, as in all methods.

    Args:
      key: a key of `jax.random`, for the first masks; under `vmap`, one a seed.
      sparsity: a schedule of the fraction pruned over steps, in [0, 1).
      fraction: of each leaf's kept weights, dropped and grown at an update, in [0, 1], or a
        schedule of it over steps; the paper's is the cosine above.
      allocation: how much of each leaf is pruned at the start.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if sparsity or fraction are out of range at either end; (in init) if a leaf would
        keep no weight; (in update) without gradients.
      TypeError: if the sparsity is no schedule.

    Reference: Liu et al., 2021, Sparse Training via Boosting Pruning Plasticity with
    Neuroregeneration.
    """
    if not callable(sparsity):
        raise TypeError(
            "granet prunes gradually: its sparsity is a schedule, such as "
            "optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=...); got "
            f"{shown(sparsity)}."
        )
    check_schedule(sparsity)
    regenerate = regrow(partial(smallest, up=True), gradient, fraction, prunable)

    def update(
        state: MaskState, params: Params, *, step: Any, at_end: Any = False, **context: Any
    ) -> MaskState:
        masks, weights, _ = prunable_parts(prunable, state.masks, params)
        ranked = defer(lambda m, w: among(m, magnitude(w)), masks, weights)
        largest = select(ranked, global_threshold, sparsity_at(sparsity, step, at_end))
        left = elementwise(jnp.logical_and, masks, largest)  # a leaf may have fewer already
        pruned = MaskState(merged(state.masks, left))
        return regenerate(pruned, params, step=step, at_end=at_end, **context)

    start = first_value(sparsity)
    if is_known(start):
        start = round(float(start), 7)  # 0.2, not the float32 next to it
    return MaskTransform(random_start(key, start, allocation, prunable), update)
