"""Masks into optax where pruned weights keep their values: all learn, or only a part is trained."""

from __future__ import annotations

from typing import Any

import optax

from jaxprune.base import MaskTransform, Params
from jaxprune.masks import apply_masks, like
from jaxprune.optimizer.given import check_given, check_kinds, ranks_dense_weights
from jaxprune.optimizer.moments import sparse_update, where_kept
from jaxprune.optimizer.sparsify import SparsifyState, first_state, updated_masks


def keep_dense(
    inner: optax.GradientTransformation, transform: MaskTransform
) -> optax.GradientTransformationExtraArgs:
    """An optimizer for masked networks whose weights all learn and stay dense.

        grads = jax.grad(loss)(apply_masks(params, get_masks(opt_state)))   # straight through

    `sparsify` updates the masks first. Here the optimizer steps first: the masks in the state are
    made from the weights of the next forward pass. The transform's `init` makes the masks of step
    0. Its `update` makes the masks of each later step from the weights at the start of that step;
    it receives the number of that step, and the gradients of the step before. So `every(n, ...)`
    changes the network at the steps n, 2n, ...

    Put it last in an `optax.chain`: nothing after it may change the updates.

    `inner` receives `mask_state=`, that of this step, beside all extra arguments.

    Raises:
      TypeError: if `inner` is no optimizer or `transform` no mask transform.
      ValueError: (in update) if `params` is missing; (in init) if `inner` already has masks, or
        `transform` trains only a part of the weights (`top_kast`).

    >>> import jax.numpy as jnp, optax, jaxprune as jp
    >>> params = {'kernel': jnp.array([[3., -1.], [2., -4.]])}
    >>> tx = jp.keep_dense(optax.sgd(1.0), jp.dpf(0.5))
    >>> state = tx.init(params)
    >>> jp.get_masks(state)['kernel'].astype(int)
    Array([[1, 0],
           [0, 1]], dtype=int32)
    >>> updates, state = tx.update({'kernel': jnp.array([[1., 2.], [0., 0.]])}, state, params)
    >>> optax.apply_updates(params, updates)['kernel']
    Array([[ 2., -3.],
           [ 2., -4.]], dtype=float32)
    >>> jp.get_masks(state)['kernel'].astype(int)
    Array([[0, 1],
           [0, 1]], dtype=int32)
    """
    check_kinds("keep_dense", inner, transform)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparsifyState:
        state = first_state("keep_dense", inner, transform, params)
        if optax.tree.get(state.mask_state, "trained") is not None:
            raise ValueError(
                "keep_dense trains all weights, and this transform has masks of the weights to "
                "train: give top_kast to train_only."
            )
        return state

    def update(
        grads: optax.Updates, state: SparsifyState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, SparsifyState]:
        check_given("keep_dense", grads, state, params, SparsifyState)
        updates, inner_state = inner.update(
            grads, state.inner_state, params, mask_state=state.mask_state, **extra
        )
        new = _next(transform, grads, state, inner_state, params, updates, extra)
        return updates, new

    return optax.GradientTransformationExtraArgs(init, update)


def train_only(
    inner: optax.GradientTransformation, transform: MaskTransform
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that trains only the weights of the masks; the others keep their values.

    `sparsify` makes a pruned weight zero. Here it keeps its value and its moments: a part of a
    dense network is trained, such as a subnetwork in fine-tuning (`fixed(masks)`). If the state of
    the transform has masks `trained`, as in `top_kast`, these say which weights are trained.

    The masks are updated first, as in `sparsify`. The masks of a transform that compares dense
    weights (`top_kast`, `dpf`, `bip`) are updated after the optimizer has stepped, as in
    `keep_dense`: the masks in the state are made from the weights of the next forward pass.

    `inner` receives `mask_state=` beside all extra arguments.

    Raises:
      TypeError: if `inner` is no optimizer or `transform` no mask transform.
      ValueError: (in update) if `params` is missing; (in init) if `inner` already has masks.

    >>> import jax.numpy as jnp, optax, jaxprune as jp
    >>> params = {'kernel': jnp.array([[3., -1.], [2., -4.]])}
    >>> tx = jp.train_only(optax.sgd(0.1), jp.fixed({'kernel': params['kernel'] > 0}))
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> optax.apply_updates(params, updates)['kernel']
    Array([[ 2.7, -1. ],
           [ 1.8, -4. ]], dtype=float32)
    """
    check_kinds("train_only", inner, transform)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparsifyState:
        return first_state("train_only", inner, transform, params)

    def update(
        grads: optax.Updates, state: SparsifyState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, SparsifyState]:
        check_given("train_only", grads, state, params, SparsifyState)
        ranks_dense = ranks_dense_weights(state.mask_state) is not None
        mask_state = (
            state.mask_state
            if ranks_dense
            else updated_masks(transform, grads, state, params, extra)
        )
        trained = like(optax.tree.get(mask_state, "trained", mask_state.masks), params)
        context = {"mask_state": mask_state, **extra}
        updates, inner_state = sparse_update(
            inner, grads, state.inner_state, params, trained, context, dense=True
        )
        inner_state = where_kept(inner_state, state.inner_state, trained, params)
        updates = apply_masks(updates, trained)
        if ranks_dense:
            return updates, _next(transform, grads, state, inner_state, params, updates, extra)
        step = optax.safe_increment(state.step)
        return updates, SparsifyState(step, mask_state, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _next(
    transform: MaskTransform,
    grads: Any,
    state: SparsifyState,
    inner_state: optax.OptState,
    params: Params,
    updates: optax.Updates,
    extra: dict,
) -> SparsifyState:
    """The state after this step, with masks made from the weights after it."""
    step = optax.safe_increment(state.step)
    after = SparsifyState(step, state.mask_state, inner_state)
    params = optax.apply_updates(params, updates)
    return after._replace(mask_state=updated_masks(transform, grads, after, params, extra))
