"""Iterative soft shrinkage: the smallest weights shrink a little at every step, then they go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation.layerwise import uniform
from jaxprune.base import (
    Allocation,
    Params,
    Pattern,
    check_allocation,
    check_pattern,
)
from jaxprune.masks import merged
from jaxprune.methods.dynamic import magnitudes
from jaxprune.one_shot import select
from jaxprune.pattern import unstructured
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import check_any, kernels
from jaxprune.schedules import check_sparsities, sparsity_at
from jaxprune.trees import map_scored


class SoftShrinkageState(NamedTuple):
    """State of `soft_shrinkage`: the step, int32 scalar. The weights that shrink are no state."""

    step: jax.Array


def soft_shrinkage(
    sparsity: float | optax.Schedule,
    factor: float = 0.95,
    allocation: Allocation = uniform,
    pattern: Pattern = unstructured,
    prunable: Callable[[Params], Params] = kernels,
) -> optax.GradientTransformationExtraArgs:
    """The smallest weights shrink after every step, by a percentage of themselves.

        w <- params + updates
        w <- w         among the largest, select(|w|, allocation, sparsity)
             factor w  elsewhere

    The weights that shrink are chosen anew at every step, so that a weight with a large gradient
    escapes. The network stays dense until a hard prune to the same sparsity; from there on only
    zeros shrink, so that the kept weights are fine-tuned. Put it last in the chain of an optimizer:

        shrinking = optax.chain(optax.adam(1e-3), soft_shrinkage(0.95))
        cut = every(1, prune(magnitude, uniform, 0.95), start=7500, stop=7500)
        tx = sparsify(shrinking, cut)

    With `factor=0` it is iterative hard thresholding.

    Args:
      sparsity: the fraction of weights that shrink, in [0, 1), or a schedule of it over steps; an
        integer is a number of weights.
      factor: what is left of a weight after one step, in [0, 1]. 0.95 leaves 0.6 % after 100.
      allocation: how much of each leaf.
      pattern: which entries of a leaf.
      prunable: `params -> params` with None in place of what never shrinks.

    Raises:
      ValueError: if the sparsity, a schedule of it at some step, or the factor is out of range; (in
        init) if nothing is prunable; (in update) if `params` is missing.

    Reference: Wang et al., 2023, Iterative Soft Shrinkage Learning for Efficient Image
    Super-Resolution. The number of weights that shrink is rounded; in the authors' code it is the
    next higher one.

    >>> import jax.numpy as jnp, optax, jaxprune as jp
    >>> params = {'kernel': jnp.array([[3., -1.], [2., -4.]])}
    >>> tx = optax.chain(optax.sgd(1.0), jp.dynamic.soft_shrinkage(0.5, factor=0.75))
    >>> updates, _ = tx.update({'kernel': jnp.zeros((2, 2))}, tx.init(params), params)
    >>> optax.apply_updates(params, updates)['kernel']
    Array([[ 3.  , -0.75],
           [ 1.5 , -4.  ]], dtype=float32)
    """
    check_allocation(allocation)
    check_pattern(pattern)
    check_sparsities(sparsity)
    if isinstance(factor, (int, float)) and not 0 <= factor <= 1:
        raise ValueError(
            "soft_shrinkage: the factor is what is left of a weight after one step, in [0, 1]; "
            f"got {factor!r}."
        )

    def init(params: Params) -> SoftShrinkageState:
        check_any(prunable(params), params)
        return SoftShrinkageState(jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates, state: SoftShrinkageState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, SoftShrinkageState]:
        if params is None:
            raise ValueError(
                "soft_shrinkage shrinks weights, and needs them: tx.update(grads, state, params)."
            )
        after = optax.apply_updates(params, updates)
        scores = magnitudes(prunable(after), after)
        kept = folded(select(scores, allocation, sparsity_at(sparsity, state.step), pattern))

        def shrunk(mask: jax.Array, w: jax.Array, new: jax.Array, u: jax.Array) -> jax.Array:
            return jnp.where(mask, u, (factor * new - w).astype(u.dtype))

        updates = merged(updates, map_scored(shrunk, kept, params, after, updates))
        return updates, SoftShrinkageState(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(init, update)
