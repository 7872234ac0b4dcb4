"""Top-KAST: one mask for the forward pass, a larger one for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import uniform
from jaxprune.base import (
    Allocation,
    Masks,
    MaskTransform,
    Params,
    check_allocation,
    check_sparsity,
    is_count,
    is_known,
    shown,
)
from jaxprune.masks import like, merged
from jaxprune.methods.dynamic import magnitudes
from jaxprune.one_shot import select
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.selection.counting import n_true
from jaxprune.trees import map_scored


class TopKastState(NamedTuple):
    """State of `top_kast`: the masks A of the network, and B of the trained weights; A is in B."""

    masks: Masks
    trained: Masks

    @property
    def ranks_dense_weights(self) -> bool:
        """Pruned weights have values that matter: `sparsify`, which zeroes them, refuses this."""
        return True


def top_kast(
    sparsity: float,
    backward_sparsity: float,
    allocation: Allocation = uniform,
    prunable: Callable[[Params], Params] = kernels,
) -> MaskTransform:
    """Forward with the largest weights A, train the larger set B; the others keep their values.

        A = the largest (1 - sparsity) |w| of each leaf
        B = the largest (1 - backward_sparsity) |w|, a superset of A

    The weights stay dense in memory and `train_only` trains only B. A weight of B outside A can
    grow until it enters the network. A and B of a step are made from the weights at its start. The
    gradient is taken at the masked weights, with respect to all weights:

        tx = train_only(optax.chain(top_kast_decay(1e-4), optax.sgd(0.1)), top_kast(0.9, 0.8))
        grads = jax.grad(loss)(apply_masks(params, get_masks(opt_state)))

    Args:
      sparsity: the fraction outside A, in [0, 1); an integer is a number of weights.
      backward_sparsity: outside B, at most `sparsity`, and a fraction or a number as it is.
      allocation: how much of each leaf.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the sparsities are out of range, or B would be smaller than A.

    Reference: Jayakumar et al., 2020, Top-KAST: Top-K Always Sparse Training.
    """
    check_allocation(allocation)
    for value in (sparsity, backward_sparsity):
        check_sparsity(value)
    if is_count(sparsity) != is_count(backward_sparsity):
        raise TypeError(
            "top_kast compares sparsity and backward_sparsity: both are fractions (floats), or "
            f"both numbers of weights (ints); got {shown(sparsity)} and {shown(backward_sparsity)}."
        )
    if is_known((sparsity, backward_sparsity)) and backward_sparsity > sparsity:
        raise ValueError(
            "top_kast trains all that the forward pass uses, and more: backward_sparsity must be "
            f"at most sparsity; got sparsity={sparsity}, backward_sparsity={backward_sparsity}."
        )

    def init(params: Params) -> TopKastState:
        chosen = prunable(params)
        check_any(chosen, params)
        scores = magnitudes(chosen, params)
        return TopKastState(
            masks=folded(select(scores, allocation, sparsity)),
            trained=folded(select(scores, allocation, backward_sparsity)),
        )

    def update(state: TopKastState, params: Params, **context: Any) -> TopKastState:
        return TopKastState(*map(merged, state, init(params)))

    return MaskTransform(init, update)


def top_kast_decay(strength: float) -> optax.GradientTransformationExtraArgs:
    """Weight decay for `top_kast`, first in the chain that `train_only` is given.

        g + strength * w        in A
        g + strength * w / D    in B outside A; D is the density of A in the leaf

    Weights outside the network decay faster, so that they leave B again. D = 1 gives the gradient
    of half the squared norm. Leaves without masks do not decay.

    Raises:
      ValueError: if the strength is no number that is at least 0; (in update) outside `train_only`.

    Reference: Jayakumar et al., 2020, Top-KAST: Top-K Always Sparse Training.
    """
    if isinstance(strength, (int, float)) and not strength >= 0:
        raise ValueError(f"top_kast_decay: the strength must be at least 0; got {strength}.")

    def update(
        updates: optax.Updates, state: Any, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        mask_state = extra.get("mask_state")
        if params is None or mask_state is None:
            raise ValueError(
                "top_kast_decay reads the masks that train_only passes on: "
                "train_only(optax.chain(top_kast_decay(1e-4), optax.sgd(0.1)), top_kast(0.9, 0.8))."
            )

        def decayed(mask: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
            density = jnp.maximum(n_true(mask)[0], 1) / max(mask.size, 1)
            return g + strength * jnp.where(mask, w, w / density).astype(g.dtype)

        masks = like(mask_state.masks, params)
        return merged(updates, map_scored(decayed, masks, params, updates)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
