"""Masks into optax: an optimizer whose weights stay exactly zero where they are pruned."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.base import Masks, MaskTransform, Params, is_none
from jaxprune.masks import apply_masks, like, mask_states
from jaxprune.rules import named_leaves
from jaxprune.zero_flow import keeps_zeros


class SparsifyState(NamedTuple):
    """State of `sparsify`.

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
    inner: optax.GradientTransformation, transform: MaskTransform
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

    Returns:
      An optax optimizer with a `SparsifyState`. Its `update` needs `params`, and passes all extra
      arguments on to the transform and to `inner`.

    Raises:
      TypeError: if `inner` is no optimizer or `transform` no mask transform.
      ValueError: (in update) if `params` is missing; (in init) if `inner` already has masks.

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
        inner_state = inner.init(params)
        _check_unmasked(inner_state)
        return SparsifyState(jnp.zeros((), jnp.int32), transform.init(params), inner_state)

    def update(
        grads: optax.Updates, state: SparsifyState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, SparsifyState]:
        _check_params("sparsify", params)
        mask_state = transform.update(
            state.mask_state,
            params,
            grads=grads,
            step=state.step,
            opt_state=state.inner_state,
            **extra,
        )
        masks = like(mask_state.masks, params)
        sparse = (
            apply_masks(grads, masks),
            zero_pruned(state.inner_state, masks, params),
            apply_masks(params, masks),
        )
        updates, inner_state = inner.update(*sparse, **extra)
        inner_state = _zero_again(inner, inner_state, sparse, masks, extra)
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
        return TrackMasksState(jnp.zeros((), jnp.int32), transform.init(params))

    def update(
        updates: optax.Updates, state: TrackMasksState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, TrackMasksState]:
        _check_params("track_masks", params)
        mask_state = transform.update(
            state.mask_state, params, grads=updates, step=state.step, opt_state=None, **extra
        )
        return updates, TrackMasksState(optax.safe_increment(state.step), mask_state)

    return optax.GradientTransformationExtraArgs(init, update)


def zero_pruned(opt_state: optax.OptState, masks: Masks, params: Params) -> optax.OptState:
    """`opt_state` with zeros where a mask is False, in every part that is a tree like `params`.

    The parts are found by their structure and shapes, not by the optimizer's type, and not by
    `optax.tree.map_params`, which fails where `init` looks into its params (labels by path,
    lbfgs). Factored moments (adafactor's rows and columns) have other shapes and stay.
    """
    leaves, treedef = jax.tree.flatten(opt_state)
    own = _leaf_masks(opt_state, masks, params)
    return jax.tree.unflatten(treedef, map(_zero_where_pruned, leaves, own))


def _zero_again(
    inner: optax.GradientTransformationExtraArgs,
    inner_state: optax.OptState,
    sparse: tuple[optax.Updates, optax.OptState, Params],
    masks: Masks,
    extra: dict[str, Any],
) -> optax.OptState:
    """The new `inner_state`, zeroed where `inner` may write although it saw only zeros there.

    Adafactor adds 1e-30 to its moments, others add noise; `zero_flow` says why not all are
    zeroed again.
    """
    _, old_state, params = sparse
    of_params = _masks_of_leaves(masks, params)
    own = (*of_params, *_leaf_masks(old_state, masks, params), *of_params)
    proven = keeps_zeros(
        lambda *args: inner.update(*args, **extra)[1], [mask is not None for mask in own], *sparse
    )
    leaves, treedef = jax.tree.flatten(inner_state)
    masked = zip(leaves, _leaf_masks(inner_state, masks, params), proven, strict=True)
    return jax.tree.unflatten(
        treedef,
        [leaf if done else _zero_where_pruned(leaf, mask) for leaf, mask, done in masked],
    )


def _zero_where_pruned(leaf: Any, mask: Any) -> Any:
    return leaf if mask is None else jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def _leaf_masks(opt_state: optax.OptState, masks: Masks, params: Params) -> list[Any]:
    """For every leaf of `opt_state` the mask it belongs to, else None."""

    def structure(tree: Any) -> Any:
        return jax.tree.structure(tree, is_leaf=_is_masked_node)

    def is_like_params(part: Any) -> bool:
        return structure(part) == wanted

    wanted, own = structure(params), iter(_masks_of_leaves(masks, params))
    # what optax.masked took out stands for a leaf, but is none
    places = jax.tree.leaves(params, is_leaf=_is_masked_node)
    of_places = [None if _is_masked_node(place) else next(own) for place in places]
    found: list[Any] = []
    for part in jax.tree.leaves(opt_state, is_leaf=is_like_params):
        if not is_like_params(part):
            found.append(None)
            continue
        leaves = jax.tree.leaves(part, is_leaf=_is_masked_node)
        for leaf, mask in zip(leaves, of_places, strict=True):
            if not _is_masked_node(leaf):
                fits = mask is not None and np.shape(leaf) == mask.shape
                found.append(mask if fits else None)
    return found


def _masks_of_leaves(masks: Masks, params: Params) -> list[Any]:
    """The masks, None included, in the order of `jax.tree.leaves(params)`."""
    pairs = zip(named_leaves(params), jax.tree.leaves(masks, is_leaf=is_none), strict=True)
    return [mask for (_, leaf), mask in pairs if leaf is not None]


def _is_masked_node(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


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


def _check_params(what: str, params: Any) -> None:
    if params is None:
        raise ValueError(
            f"{what} needs the params to prune them: call update(grads, state, params)."
        )


def _check_unmasked(inner_state: Any) -> None:
    if any(mask_states(inner_state)):
        raise ValueError(
            "the optimizer given to sparsify already has masks. Sparsify once, with "
            "jp.chain(transform, ...) for several mask transforms."
        )
