"""Structured pruning over time: a mask transform that prunes whole neurons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import global_threshold
from jaxprune.base import (
    Allocation,
    Masks,
    MaskState,
    MaskTransform,
    Params,
    Score,
    check_allocation,
    check_score,
)
from jaxprune.coupling.groups import chosen
from jaxprune.coupling.structure import Structure
from jaxprune.masks import merged
from jaxprune.methods.combine import once
from jaxprune.schedules import check_sparsities, sparsity_at
from jaxprune.sharding import automatic, sharded_like
from jaxprune.structured.check import part_of
from jaxprune.structured.kept import kept as kept_neurons
from jaxprune.structured.kept import masks as group_masks
from jaxprune.structured.pick import choose
from jaxprune.trees import map_scored


def prune(
    structure: Structure,
    score: Score,
    allocation: Allocation = global_threshold,
    sparsity: float | optax.Schedule = 0.5,
    round_to: int = 1,
    groups: Sequence[str] | None = None,
) -> MaskTransform:
    """Prunes whole neurons, those of the lowest scores. Pruned neurons stay pruned, at zero.

        masks = masks(structure, pick(structure, score(params), sparsity(step), allocation))

    With a number it prunes once, with a schedule at every update, as `prune` does. At the end
    `compact(structure, params, kept(structure, get_masks(opt_state)))` is the small network.

    Args:
      structure: of `analyze(fn, params, ...)`; the optimizer trains all of these params or a part,
        such as Flax's params without their `batch_stats`.
      score: of groups, such as `per_group(structure)`.
      allocation: how many of each group; see `pick`.
      sparsity: the fraction of all neurons pruned, in [0, 1), or a function of the step; an integer
        is how many neurons.
      round_to, groups: see `pick`.

    Raises:
      ValueError: if the sparsity, or a schedule of it at some step, is outside [0, 1); (in init) if
        these are not the params that were analyzed.
    """
    check_score("structured.prune: score", score)
    check_allocation(allocation)
    check_sparsities(sparsity, of="neurons")
    if not structure.groups:
        raise ValueError(
            "structured.prune: there is no group to prune; print the structure to see what freezes "
            "them."
        )

    names = list(structure.groups) if groups is None else chosen(groups, structure.groups)

    def init(params: Params) -> MaskState:
        masks = part_of(structure, group_masks(structure, {}), params, "structured.prune")
        return MaskState(map_scored(sharded_like, masks, params))

    def update(
        state: MaskState, params: Params, *, step: Any, at_end: Any = False, **context: Any
    ) -> MaskState:
        def updated(old: Masks, params: Params, asked: Any, context: dict[str, Any]) -> Masks:
            before = kept_neurons(structure, old)
            scores = score(params, **context)
            left = {n: jnp.where(before[n], scores[n], -jnp.inf) for n in names}
            kept = choose(left, allocation, asked, round_to)
            masks = group_masks(structure, {n: kept[n] & before[n] for n in kept})
            masks = part_of(structure, masks, old, "structured.prune")
            return merged(old, map_scored(jnp.logical_and, old, masks))

        # the members of a group may lie on different axes of a mesh
        across = automatic(updated, state.masks)
        asked = sparsity_at(sparsity, step, at_end)
        return MaskState(across(state.masks, params, asked, {"step": step, **context}))

    gradual = MaskTransform(init, update)
    return gradual if callable(sparsity) else once(gradual)
