"""ITOP: a record of all weights that were ever active."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Masks, MaskTransform, Params
from jaxprune.methods.combine import check_transform, with_masks, without_masks


class ItopState(NamedTuple):
    """State of `itop`: the masks, which weights were ever kept (like the masks), and the rest."""

    masks: Masks
    ever_active: Masks
    rest: Any


def itop(transform: MaskTransform) -> MaskTransform:
    """`transform`, with a record of all weights it ever kept: in-time over-parameterization.

    The fraction ever active, R_s = 1 - sparsity(ever_active(opt_state)), tells how much of the
    dense network a sparse one has tried. The paper finds that it predicts accuracy, and raises it
    with longer cadences, larger fractions and updates until the end:

        fraction = optax.cosine_decay_schedule(0.5, steps, alpha=0.01)
        every(1_500, itop(set(key, 0.9, fraction)), start=1_500)

    Inside `every` it costs nothing at steps without an update. With `start`, as in the authors'
    code, the first masks train before the first update.

    Reference: Liu et al., 2021, Do We Actually Need Dense Over-Parameterization? In-Time
    Over-Parameterization in Sparse Training.
    """
    check_transform("itop", transform)

    def init(params: Params) -> ItopState:
        state = transform.init(params)
        return ItopState(state.masks, jax.tree.map(jnp.copy, state.masks), without_masks(state))

    def update(state: ItopState, params: Params, **context: Any) -> ItopState:
        new = transform.update(with_masks(state.rest, state.masks), params, **context)
        ever = jax.tree.map(jnp.logical_or, state.ever_active, new.masks)
        return ItopState(new.masks, ever, without_masks(new))

    def due(state: ItopState, **time: Any) -> Any:
        assert transform.due is not None
        return transform.due(with_masks(state.rest, state.masks), **time)

    return MaskTransform(init, update, None if transform.due is None else due)


def ever_active(opt_state: Any) -> Masks:
    """The weights that `itop` ever saw kept: like the masks, from any nesting of optax states.

    Raises:
      ValueError: if the state has none, or several.
    """
    records = optax.tree.get_all_with_path(opt_state, "ever_active")
    if len(records) != 1:
        raise ValueError(
            f"this optimizer state has {len(records)} records of weights that were ever active, "
            "wanted one: wrap the mask transform in itop, as in every(100, itop(rigl(key, 0.9)))."
        )
    return records[0][1]
