"""Top-KAST: one mask for the forward pass, a larger one for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import uniform
from jaxprune.base import Allocation, Masks, MaskTransform, Params, check_fraction, is_known
from jaxprune.masks import like, with_own
from jaxprune.pattern import select
from jaxprune.prunable.layers import folded, has_layers, split_like
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.scores import magnitude
from jaxprune.selection.counting import n_true
from jaxprune.selection.deferred import defer
from jaxprune.trees import map_scored


class TopKastState(NamedTuple):
    """State of `top_kast`: the masks A of the forward pass, and B, of what is trained; A in B."""

    masks: Masks
    trained: Masks

    @property
    def ranks_dense_weights(self) -> bool:
        """What is not kept has a value that still matters: not for `sparsify`, which zeroes it."""
        return True


def top_kast(
    sparsity: float,
    backward_sparsity: float,
    allocation: Allocation = uniform,
    prunable: Callable[[Params], Params] = kernels,
) -> MaskTransform:
    """Forward with the largest weights A, train the larger set B: the others rest as they are.

        A = the largest (1 - sparsity) |w| of each leaf
        B = the largest (1 - backward_sparsity) |w|, a superset of A

    The weights stay dense in memory and `train_only` trains only B. A weight of B outside A can
    grow until it enters the network. A and B of a step are those of the weights that it starts
    with. The gradient is that at the masked weights, with respect to all:

        tx = train_only(optax.chain(top_kast_decay(1e-4), optax.sgd(0.1)), top_kast(0.9, 0.8))
        grads = jax.grad(loss)(apply_masks(params, get_masks(opt_state)))

    Args:
      sparsity: the fraction outside A, in [0, 1).
      backward_sparsity: the fraction outside B, at most `sparsity`.
      allocation: how much of each leaf.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the sparsities are out of range, or B would be smaller than A.

    Reference: Jayakumar et al., 2020, Top-KAST: Top-K Always Sparse Training.
    """
    check_fraction(sparsity)
    check_fraction(backward_sparsity)
    if is_known(sparsity) and backward_sparsity > sparsity:
        raise ValueError(
            "top_kast trains all that the forward pass uses, and more: backward_sparsity must be "
            f"at most sparsity; got sparsity={sparsity}, backward_sparsity={backward_sparsity}."
        )

    def init(params: Params) -> TopKastState:
        chosen = prunable(params)
        check_any(chosen, params)
        own = split_like(params, chosen, deferred=True)
        scores = defer(magnitude, own) if has_layers(chosen) else magnitude(own)
        return TopKastState(
            masks=folded(select(scores, allocation, sparsity)),
            trained=folded(select(scores, allocation, backward_sparsity)),
        )

    def update(state: TopKastState, params: Params, **context: Any) -> TopKastState:
        new = init(params)
        return TopKastState(*(with_own(old, own) for old, own in zip(state, new, strict=True)))

    return MaskTransform(init, update)


def top_kast_decay(strength: float) -> optax.GradientTransformationExtraArgs:
    """Weight decay for `top_kast`, first in the chain that `train_only` is given.

        g + strength * w        in A
        g + strength * w / D    in B outside A; D is the density of A in the leaf

    What the network does not use decays faster, so that weights leave B again. It is the gradient
    of half the squared norm; leaves without masks do not decay.

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
                "top_kast_decay is told the masks by train_only: "
                "train_only(optax.chain(top_kast_decay(1e-4), optax.sgd(0.1)), top_kast(0.9, 0.8))."
            )

        def decayed(mask: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
            density = jnp.maximum(n_true(mask)[0], 1) / max(mask.size, 1)
            return g + strength * jnp.where(mask, w, w / density).astype(g.dtype)

        masks = like(mask_state.masks, params)
        own = map_scored(decayed, masks, params, updates)
        return with_own(updates, own), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
