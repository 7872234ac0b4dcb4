"""Masks into optax: an optimizer whose weights stay exactly zero where they are pruned."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Masks, MaskTransform, Params
from jaxprune.given import check_given, first_masks
from jaxprune.masks import apply_masks, like, mask_states
from jaxprune.moments import where_kept, zero_again, zero_pruned


class SparsifyState(NamedTuple):
    """State of `sparsify` and `freeze`.

    Attributes:
      step: int32 scalar, how many updates were made.
      mask_state: the mask transform's; its field `masks` holds the masks of the current params.
      inner_state: the wrapped optimizer's.
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

    Each update first updates the masks, then hands the inner optimizer a sparse world: gradients,
    params and its own moments are zero where the mask is False. What comes back makes
    `params + updates` exactly zero there. Nothing else is to be called.

    Put it last in an `optax.chain`: what scales or adds to the updates after it breaks the zeros.

    Args:
      inner: any optax optimizer. Every part of its state that is shaped like the params (moments,
        accumulated gradients, averaged weights) is zeroed where the mask is False.
      transform: such as `prune(...)`, `fixed(masks)`, or `every(n, ...)` of one.
      update_replaces_step: if True, a step that changes the masks changes nothing else: `inner`
        does not step, and the gradient served only to choose the masks, as in the code of RigL. By
        default `inner` steps with the new masks at once, and no step of a schedule is lost.

    Returns:
      An optax optimizer with a `SparsifyState`. Its `update` needs `params`, and passes all extra
      arguments on to the transform and to `inner`.

    Raises:
      TypeError: if `inner` is no optimizer or `transform` no mask transform.
      ValueError: (in update) if `params` is missing; (in init) if `inner` already has masks, or
        `transform` needs weights that stay dense (`dpf`, `top_kast`).

    >>> import jax.numpy as jnp, optax, jaxprune as jp
    >>> params = {'kernel': jnp.array([[3., -1.], [2., -4.]])}
    >>> tx = jp.sparsify(optax.sgd(0.1), jp.prune(jp.magnitude, jp.uniform, 0.5))
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> optax.apply_updates(params, updates)['kernel']
    Array([[ 2.7,  0. ],
           [ 0. , -3.6]], dtype=float32)
    """
    _check_kinds("sparsify", inner, transform)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparsifyState:
        state = _init("sparsify", inner, transform, params)
        _check_ranks_sparse(state.mask_state)
        return state

    def update(
        grads: optax.Updates, state: SparsifyState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, SparsifyState]:
        check_given("sparsify", grads, state, params, SparsifyState)
        mask_state = _updated_masks(transform, grads, state, params, extra)
        masks = like(mask_state.masks, params)
        rested = zero_pruned(state.inner_state, masks, params)
        sparse = (apply_masks(grads, masks), rested, apply_masks(params, masks))
        updates, inner_state = inner.update(*sparse, **extra)
        inner_state = zero_again(inner, inner_state, sparse, masks, extra)
        if update_replaces_step:
            changed = _differ(state.mask_state.masks, mask_state.masks)
            updates = _where(changed, optax.tree.zeros_like(updates), updates)
            inner_state = _where(changed, rested, inner_state)
        updates = jax.tree.map(
            lambda w, m, u: u if m is None else jnp.where(m, u, -w), params, masks, updates
        )
        step = optax.safe_increment(state.step)
        return updates, SparsifyState(step, mask_state, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def track_masks(transform: MaskTransform) -> optax.GradientTransformationExtraArgs:
    """Keeps masks in the optimizer's state and leaves the updates as they are.

    For methods whose dense weights keep learning while the network uses
    `apply_masks(params, get_masks(opt_state))` (straight-through estimators). The transform gets
    the updates that reach it as `grads`: put it first in an `optax.chain` for the gradients
    themselves. It sees no inner optimizer, so scores that need `opt_state` can't be used.

    Raises:
      TypeError: if `transform` is no mask transform.
      ValueError: (in update) if `params` is missing.
    """
    _check_kinds("track_masks", optax.identity(), transform)

    def init(params: Params) -> TrackMasksState:
        return TrackMasksState(jnp.zeros((), jnp.int32), first_masks(transform, params))

    def update(
        updates: optax.Updates, state: TrackMasksState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, TrackMasksState]:
        check_given("track_masks", updates, state, params, TrackMasksState)
        mask_state = transform.update(
            state.mask_state, params, grads=updates, step=state.step, opt_state=None, **extra
        )
        return updates, TrackMasksState(optax.safe_increment(state.step), mask_state)

    return optax.GradientTransformationExtraArgs(init, update)


def freeze(
    inner: optax.GradientTransformation, transform: MaskTransform
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that trains only the weights of the masks; the others rest as they are.

    Where `sparsify` makes a pruned weight zero, here it keeps its value, and its moments: a part of
    a dense network is trained, such as a subnetwork in fine-tuning (`fixed(masks)`). Of a transform
    whose state has other masks for this, `trained`, it trains those: `top_kast`.

    `inner` is passed `mask_state=`, beside all extra arguments, for transformations that read it.

    Raises:
      TypeError: if `inner` is no optimizer or `transform` no mask transform.
      ValueError: (in update) if `params` is missing; (in init) if `inner` already has masks.

    >>> import jax.numpy as jnp, optax, jaxprune as jp
    >>> params = {'kernel': jnp.array([[3., -1.], [2., -4.]])}
    >>> tx = jp.freeze(optax.sgd(0.1), jp.fixed({'kernel': params['kernel'] > 0}))
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> optax.apply_updates(params, updates)['kernel']
    Array([[ 2.7, -1. ],
           [ 1.8, -4. ]], dtype=float32)
    """
    _check_kinds("freeze", inner, transform)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparsifyState:
        return _init("freeze", inner, transform, params)

    def update(
        grads: optax.Updates, state: SparsifyState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, SparsifyState]:
        check_given("freeze", grads, state, params, SparsifyState)
        mask_state = _updated_masks(transform, grads, state, params, extra)
        trained = like(optax.tree.get(mask_state, "trained", mask_state.masks), params)
        updates, inner_state = inner.update(
            apply_masks(grads, trained), state.inner_state, params, mask_state=mask_state, **extra
        )
        inner_state = where_kept(inner_state, state.inner_state, trained, params)
        step = optax.safe_increment(state.step)
        return apply_masks(updates, trained), SparsifyState(step, mask_state, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _init(
    what: str, inner: optax.GradientTransformation, transform: MaskTransform, params: Params
) -> SparsifyState:
    inner_state = inner.init(params)
    _check_unmasked(what, inner_state)
    return SparsifyState(jnp.zeros((), jnp.int32), first_masks(transform, params), inner_state)


def _updated_masks(
    transform: MaskTransform, grads: Any, state: SparsifyState, params: Params, extra: dict
) -> Any:
    own = {"grads": grads, "step": state.step, "opt_state": state.inner_state}
    return transform.update(state.mask_state, params, **own, **extra)


def _differ(masks: Masks, others: Masks) -> jax.Array:
    pairs = zip(jax.tree.leaves(masks), jax.tree.leaves(others), strict=True)
    return jnp.stack([(a != b).any() for a, b in pairs]).any()


def _where(condition: jax.Array, tree: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


def _check_kinds(what: str, inner: Any, transform: Any) -> None:
    if not isinstance(transform, MaskTransform):
        swapped = isinstance(inner, MaskTransform)
        hint = " The optimizer comes first." if swapped else ""
        called = " Call it: it makes a transform." if callable(transform) else ""
        raise TypeError(
            f"{what} needs a mask transform, such as jp.prune(...), jp.fixed(masks) or "
            f"jp.every(n, ...); got {_kind(transform)}.{hint}{called}"
        )
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"{what} needs an optax optimizer, such as optax.adam(1e-3); got {_kind(inner)}."
            + (" Call it: it makes an optimizer." if inspect.isfunction(inner) else "")
            + (
                " Give it MultiSteps(...).gradient_transformation()."
                if isinstance(inner, optax.MultiSteps)
                else ""
            )
        )


def _kind(thing: Any) -> str:
    return getattr(thing, "__name__", None) or type(thing).__name__


def _check_ranks_sparse(mask_state: Any) -> None:
    def ranks_dense(node: Any) -> bool:
        return getattr(node, "ranks_dense_weights", False) is True

    for node in jax.tree.leaves(mask_state, is_leaf=ranks_dense):
        if ranks_dense(node):
            raise ValueError(
                f"sparsify zeroes what is pruned, and a transform with a {_kind(node)} compares "
                "weights that stay dense: give dpf to track_masks, and top_kast to freeze."
            )


def _check_unmasked(what: str, inner_state: Any) -> None:
    if any(mask_states(inner_state)):
        raise ValueError(
            f"the optimizer given to {what} already has masks. Wrap it once, with "
            "jp.chain(transform, ...) for several mask transforms."
        )
