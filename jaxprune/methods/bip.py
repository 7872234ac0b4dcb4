"""BiP: the masks learn by gradients that look ahead at what the weights will be under them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import global_threshold
from jaxprune.base import (
    Allocation,
    Masks,
    MaskTransform,
    Params,
    Pattern,
    Scores,
    check_allocation,
    check_pattern,
    check_sparsity,
    is_known,
    is_mask,
    widened,
)
from jaxprune.masks import all_kept, like, merged
from jaxprune.one_shot import select
from jaxprune.pattern import unstructured
from jaxprune.prunable.layers import folded, split_like
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.trees import map_scored


class BipState(NamedTuple):
    """State of `bip`.

    Attributes:
      masks: of the network.
      scores: m, float32, like the masks; the largest are kept.
      begun: bool scalar, whether there was an update, which makes the first scores.
      inner_state: of the optimizer of the scores.
    """

    masks: Masks
    scores: Scores
    begun: jax.Array
    inner_state: optax.OptState

    @property
    def ranks_dense_weights(self) -> bool:
        """Pruned weights have values that matter: `sparsify`, which zeroes them, refuses this."""
        return True


def bip(
    sparsity: float,
    optimizer: optax.GradientTransformation,
    gamma: float = 1.0,
    allocation: Allocation = global_threshold,
    pattern: Pattern = unstructured,
    prunable: Callable[[Params], Params] = kernels,
) -> MaskTransform:
    """Bi-level pruning: the weights learn under the masks, and the masks by `hyper_gradient`.

        below   min over w of  loss(masks w) + gamma / 2 |w|^2      by the optimizer of the weights
        above   min over m of  loss(masks w*(m)),  masks = select(m)   by `optimizer`

    The first update makes the scores m = |w| and with them the masks of one-shot magnitude pruning;
    until then the network is dense. At each later update the scores take a step of `optimizer`.
    Weights outside the masks keep their values, so that a mask can come back. Use it with
    `train_only`, on a trained network:

        rule = bip(0.95, optax.sgd(1.0, 0.9))
        tx = train_only(optax.sgd(0.1, 0.9), every(1, rule))
        grads = jax.grad(loss)(apply_masks(params, get_masks(opt_state)))

    The gradient of one batch serves both levels, at the weights after the step. A weight decay of
    the optimizer in `train_only` is the penalty below; it does not reach weights that rest.

    Args:
      sparsity: the fraction pruned, in [0, 1); an integer is a number of weights.
      optimizer: of the scores.
      gamma: the strength of the penalty on the weights, as the masks see it, above 0.
      allocation: how much of each leaf; its scores are m.
      pattern: which entries of a leaf.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if the sparsity or gamma is out of range; (in init) if nothing is prunable.
      TypeError: if `optimizer` is no optimizer.

    Reference: Zhang et al., 2022, Advancing Model Pruning via Bi-level Optimization. It takes one
    batch for each level, and its code adds squared gradients in place of the paper's equation.
    """
    check_sparsity(sparsity)
    check_allocation(allocation)
    check_pattern(pattern)
    _check_gamma("bip", gamma)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            "bip: the scores need an optax optimizer, such as optax.sgd(1.0, 0.9); got "
            f"{type(optimizer).__name__}."
        )

    def init(params: Params) -> BipState:
        chosen = prunable(params)
        check_any(chosen, params)
        masks = folded(all_kept(chosen))
        scores = _sizes(masks, params)
        return BipState(masks, scores, jnp.zeros((), bool), optimizer.init(scores))

    def update(state: BipState, params: Params, *, grads: Params, **context: Any) -> BipState:
        masks = like(state.masks, params)
        slopes = hyper_gradient(params, masks, grads, gamma)
        steps, inner_state = optimizer.update(slopes, state.inner_state, state.scores)
        learned = optax.apply_updates(state.scores, steps), inner_state
        first = _sizes(masks, params), state.inner_state
        scores, inner_state = jax.tree.map(
            lambda new, old: jnp.where(state.begun, new, old), learned, first
        )
        kept = select(split_like(scores, prunable(params)), allocation, sparsity, pattern)
        return BipState(merged(state.masks, kept), scores, jnp.ones((), bool), inner_state)

    return MaskTransform(init, update)


def hyper_gradient(params: Params, masks: Masks, grads: Params, gamma: float = 1.0) -> Scores:
    """The gradient of the loss with respect to masks, if the weights answer to them; float32.

        (w - masks g / gamma) g,    g the gradient at masks w

    The weights of the lower level satisfy gamma w = -masks g. The answer of the weights to a mask
    is the derivative of this equation without second derivatives of the loss, which is exact for a
    loss that is linear near masks w.

    Args:
      params: w, like the masks or with more leaves.
      masks: bool, or floats in [0, 1]; None where never pruned.
      grads: g, like the params: dense, taken at the masked weights.
      gamma: the strength of the penalty gamma / 2 |w|^2 of the lower level, above 0.

    Raises:
      ValueError: if gamma is out of range.

    Reference: Zhang et al., 2022, Advancing Model Pruning via Bi-level Optimization.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> w, masks, g = jnp.array([3., 1.]), jnp.array([True, False]), jnp.array([2., 2.])
    >>> jp.dynamic.hyper_gradient(w, masks, g)
    Array([2., 2.], dtype=float32)
    """
    _check_gamma("hyper_gradient", gamma)

    def slope(mask: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        w, g = widened(w), widened(g)
        answer = jnp.where(mask, g, 0) if is_mask(mask) else mask * g
        return (w - answer / gamma) * g

    return map_scored(slope, masks, params, grads)


def _sizes(masks: Masks, params: Params) -> Scores:
    return map_scored(lambda _, w: jnp.abs(widened(w)), masks, params)


def _check_gamma(what: str, gamma: Any) -> None:
    if is_known(gamma) and not gamma > 0:
        raise ValueError(
            f"{what}: gamma is the strength of a penalty on the weights, above 0; got {gamma!r}."
        )
