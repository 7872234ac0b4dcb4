"""Masks into optax: an optimizer whose weights stay exactly zero where they are pruned."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import MaskTransform, Params
from jaxprune.masks import like
from jaxprune.optimizer.given import (
    check_given,
    check_kinds,
    check_unmasked,
    first_masks,
    kind_of,
    ranks_dense_weights,
)
from jaxprune.optimizer.moments import sparse_update, zero_pruned


class SparsifyState(NamedTuple):
    """State of `sparsify`, `train_only` and `keep_dense`.

    Attributes:
      step: int32 scalar, how many updates were made.
      mask_state: of the mask transform; its field `masks` holds the masks of the current params.
      inner_state: of the wrapped optimizer.
    """

    step: jax.Array
    mask_state: Any
    inner_state: optax.OptState


class TrackMasksState(NamedTuple):
    """State of `track_masks`: the step, int32 scalar, and the mask transform's state."""

    step: jax.Array
    mask_state: Any


def sparsify(
    inner: optax.GradientTransformation,
    transform: MaskTransform,
    update_replaces_step: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that keeps pruned weights at exactly zero, and changes its masks as it trains.

    Each update first updates the masks. Then the inner optimizer sees a sparse network: gradients,
    params and moments are zero where the mask is False. The updates make `params + updates` exactly
    zero there. You call nothing else.

    Put it last in an `optax.chain`: a transformation after it that scales or adds to the updates
    breaks the zeros. A transformation that measures gradients goes inside, so that it counts no
    pruned weight: `sparsify(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
    transform)`.

    An update can't make a weight zero that is nan or inf: call `apply_masks` once.

    Args:
      inner: any optax optimizer. Every part of its state that is shaped like the params (moments,
        accumulated gradients, averaged weights) is zeroed where the mask is False.
      transform: such as `prune(...)`, `fixed(masks)`, or `every(n, ...)` of one.
      update_replaces_step: if True, `inner` does not step when an update of the masks is due, even
        if the masks stay the same: the gradient only chooses the masks, as in the code of RigL.
        This needs a transform with a cadence, `every(n, ...)`. By default `inner` steps with the
        new masks at once, and no step of a schedule is lost.

    Returns:
      An optax optimizer with a `SparsifyState`. Its `update` needs `params`, and passes all extra
      arguments to the transform and to `inner`.

    Raises:
      TypeError: if `inner` is no optimizer or `transform` no mask transform.
      ValueError: if updates replace steps and `transform` has no cadence; (in update) if `params`
        is missing; (in init) if `inner` already has masks, or `transform` needs weights that stay
        dense (`dpf`, `top_kast`, `bip`).

    >>> import jax.numpy as jnp, optax, jaxprune as jp
    >>> params = {'kernel': jnp.array([[3., -1.], [2., -4.]])}
    >>> tx = jp.sparsify(optax.sgd(0.1), jp.prune(jp.magnitude, jp.uniform, 0.5))
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> optax.apply_updates(params, updates)['kernel']
    Array([[ 2.7,  0. ],
           [ 0. , -3.6]], dtype=float32)
    """
    check_kinds("sparsify", inner, transform)
    if update_replaces_step and transform.due is None:
        raise ValueError(
            "sparsify(update_replaces_step=True): an update of the masks takes the place of a "
            "step, and it is not known when this transform updates; at every step, nothing would "
            "be trained. Give it a cadence: every(100, transform)."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparsifyState:
        state = first_state("sparsify", inner, transform, params)
        if ranking := ranks_dense_weights(state.mask_state):
            raise ValueError(
                f"sparsify zeroes pruned weights, and a transform with a {kind_of(ranking)} "
                "compares weights that stay dense: give dpf to keep_dense, and top_kast or "
                "bip to train_only."
            )
        return state

    def update(
        grads: optax.Updates, state: SparsifyState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, SparsifyState]:
        check_given("sparsify", grads, state, params, SparsifyState)
        mask_state = updated_masks(transform, grads, state, params, extra)
        masks = like(mask_state.masks, params)
        updates, inner_state = sparse_update(inner, grads, state.inner_state, params, masks, extra)
        if update_replaces_step and transform.due is not None:
            due = transform.due(state.mask_state, step=state.step)
            updates = _where(due, optax.tree.zeros_like(updates), updates)
            rested = zero_pruned(state.inner_state, masks, params)
            inner_state = _where(due, rested, inner_state)
        updates = jax.tree.map(
            lambda w, m, u: u if m is None else jnp.where(m, u, -w), params, masks, updates
        )
        step = optax.safe_increment(state.step)
        return updates, SparsifyState(step, mask_state, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def track_masks(transform: MaskTransform) -> optax.GradientTransformationExtraArgs:
    """Keeps masks in the optimizer's state and leaves the updates as they are.

    The transform runs at this place of the chain, before the optimizer steps: its `grads` are the
    updates that reach this place, and its params are those before the step. Masks of weights that
    go on learning would be a step late here: see `keep_dense`. There is no inner optimizer, so that
    scores that need `opt_state` can't be used.

    Raises:
      TypeError: if `transform` is no mask transform.
      ValueError: (in update) if `params` is missing; (in init) if `transform` compares weights that
        stay dense (`dpf`, `top_kast`, `bip`).
    """
    check_kinds("track_masks", optax.identity(), transform)

    def init(params: Params) -> TrackMasksState:
        mask_state = first_masks(transform, params)
        if ranking := ranks_dense_weights(mask_state):
            raise ValueError(
                "track_masks updates masks before the optimizer steps, and a transform with a "
                f"{kind_of(ranking)} reads the weights after it: its masks would be a step late. "
                "Write keep_dense(optax.sgd(0.1), dpf(0.9)) in place of "
                "optax.chain(track_masks(dpf(0.9)), optax.sgd(0.1)), and give top_kast or "
                "bip to train_only."
            )
        return TrackMasksState(jnp.zeros((), jnp.int32), mask_state)

    def update(
        updates: optax.Updates, state: TrackMasksState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, TrackMasksState]:
        check_given("track_masks", updates, state, params, TrackMasksState)
        mask_state = transform.update(
            state.mask_state, params, grads=updates, step=state.step, opt_state=None, **extra
        )
        return updates, TrackMasksState(optax.safe_increment(state.step), mask_state)

    return optax.GradientTransformationExtraArgs(init, update)


def first_state(
    what: str, inner: optax.GradientTransformation, transform: MaskTransform, params: Params
) -> SparsifyState:
    """Step 0, the first masks, and the first state of the inner optimizer."""
    inner_state = inner.init(params)
    check_unmasked(what, inner_state)
    return SparsifyState(jnp.zeros((), jnp.int32), first_masks(transform, params), inner_state)


def updated_masks(
    transform: MaskTransform, grads: Any, state: SparsifyState, params: Params, extra: dict
) -> Any:
    context = {"grads": grads, "step": state.step, "opt_state": state.inner_state, **extra}
    return transform.update(state.mask_state, params, **context)


def _where(condition: jax.Array, tree: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)
