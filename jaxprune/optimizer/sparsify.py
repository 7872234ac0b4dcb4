"""Masks into optax: an optimizer whose weights stay exactly zero where they are pruned."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import MaskTransform, Params
from jaxprune.masks import apply_masks, like, mask_states
from jaxprune.optimizer.given import check_given, first_masks
from jaxprune.optimizer.moments import sparse_update, where_kept, zero_pruned


class SparsifyState(NamedTuple):
    """State of `sparsify`, `train_only` and `keep_dense`.

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
    What measures gradients goes inside, so that it counts no pruned weight:
    `sparsify(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)), transform)`.

    No update makes a zero of a weight that is nan or inf: `apply_masks` does, once.

    Args:
      inner: any optax optimizer. Every part of its state that is shaped like the params (moments,
        accumulated gradients, averaged weights) is zeroed where the mask is False.
      transform: such as `prune(...)`, `fixed(masks)`, or `every(n, ...)` of one.
      update_replaces_step: if True, a step at which an update of the masks is due does nothing
        else, also where the masks stay as they were: `inner` does not step, and the gradient served
        only to choose the masks, as in the code of RigL. By default `inner` steps with the new
        masks at once, and no step of a schedule is lost. The transform then needs a cadence:
        `every(n, ...)`.

    Returns:
      An optax optimizer with a `SparsifyState`. Its `update` needs `params`, and passes all extra
      arguments on to the transform and to `inner`.

    Raises:
      TypeError: if `inner` is no optimizer or `transform` no mask transform.
      ValueError: if updates are to replace steps and `transform` has no cadence; (in update) if
        `params` is missing; (in init) if `inner` already has masks, or `transform` needs weights
        that stay dense (`dpf`, `top_kast`).

    >>> import jax.numpy as jnp, optax, jaxprune as jp
    >>> params = {'kernel': jnp.array([[3., -1.], [2., -4.]])}
    >>> tx = jp.sparsify(optax.sgd(0.1), jp.prune(jp.magnitude, jp.uniform, 0.5))
    >>> updates, state = tx.update(params, tx.init(params), params)
    >>> optax.apply_updates(params, updates)['kernel']
    Array([[ 2.7,  0. ],
           [ 0. , -3.6]], dtype=float32)
    """
    _check_kinds("sparsify", inner, transform)
    if update_replaces_step and transform.due is None:
        raise ValueError(
            "sparsify(update_replaces_step=True): an update of the masks takes the place of a "
            "step, and this transform does not say when it updates; if it does at every step, "
            "nothing is trained. Give it a cadence: every(100, transform)."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparsifyState:
        state = _init("sparsify", inner, transform, params)
        if ranking := _ranks_dense_weights(state.mask_state):
            raise ValueError(
                f"sparsify zeroes what is pruned, and a transform with a {_kind(ranking)} compares "
                "weights that stay dense: give dpf to keep_dense, and top_kast to train_only."
            )
        return state

    def update(
        grads: optax.Updates, state: SparsifyState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, SparsifyState]:
        check_given("sparsify", grads, state, params, SparsifyState)
        mask_state = _updated_masks(transform, grads, state, params, extra)
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

    The transform is asked in the place of the chain where this stands, before the optimizer steps:
    it gets the updates that reach it as `grads`, and the weights before the step. Masks that are
    chosen by weights that go on learning are a step late here: see `keep_dense`. It sees no inner
    optimizer, so scores that need `opt_state` can't be used.

    Raises:
      TypeError: if `transform` is no mask transform.
      ValueError: (in update) if `params` is missing; (in init) if `transform` compares weights that
        stay dense (`dpf`, `top_kast`).
    """
    _check_kinds("track_masks", optax.identity(), transform)

    def init(params: Params) -> TrackMasksState:
        mask_state = first_masks(transform, params)
        if ranking := _ranks_dense_weights(mask_state):
            raise ValueError(
                "track_masks asks for masks before the optimizer steps, and those of a transform "
                f"with a {_kind(ranking)} are of the weights after it: they would be a step late. "
                "Write keep_dense(optax.sgd(0.1), dpf(0.9)) in place of "
                "optax.chain(track_masks(dpf(0.9)), optax.sgd(0.1)), and give top_kast to "
                "train_only."
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


def keep_dense(
    inner: optax.GradientTransformation, transform: MaskTransform
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose weights all learn and stay dense, while the network uses masks of them.

        grads = jax.grad(loss)(apply_masks(params, get_masks(opt_state)))   # straight through

    Where `sparsify` updates the masks first, here the optimizer steps first: the masks in the state
    are those of the weights that the next forward pass has. The transform's `init` makes those of
    step 0. Its `update` makes those of each later step from the weights that this step starts with,
    and is told its number; `grads` are those of the step before. So `every(n, ...)` changes what
    the network uses at the steps n, 2n, ...

    Put it last in an `optax.chain`: after it, nothing may change the updates.

    `inner` is passed `mask_state=`, that of this step, beside all extra arguments.

    Raises:
      TypeError: if `inner` is no optimizer or `transform` no mask transform.
      ValueError: (in update) if `params` is missing; (in init) if `inner` already has masks, or
        `transform` trains a part of the weights only (`top_kast`).

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
    _check_kinds("keep_dense", inner, transform)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparsifyState:
        state = _init("keep_dense", inner, transform, params)
        if optax.tree.get(state.mask_state, "trained") is not None:
            raise ValueError(
                "keep_dense trains all weights, and this transform has masks of those that it "
                "trains: give top_kast to train_only."
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
    """An optimizer that trains only the weights of the masks; the others rest as they are.

    Where `sparsify` makes a pruned weight zero, here it keeps its value, and its moments: a part of
    a dense network is trained, such as a subnetwork in fine-tuning (`fixed(masks)`). Of a transform
    whose state has other masks for this, `trained`, it trains those: `top_kast`.

    The masks are updated first, as in `sparsify`. But those of a transform that compares dense
    weights (`top_kast`, `dpf`) are updated when the optimizer has stepped, as in `keep_dense`: the
    masks in the state are those of the weights that the next forward pass has.

    `inner` is passed `mask_state=`, beside all extra arguments, for transformations that read it.

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
    _check_kinds("train_only", inner, transform)
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> SparsifyState:
        return _init("train_only", inner, transform, params)

    def update(
        grads: optax.Updates, state: SparsifyState, params: Params = None, **extra: Any
    ) -> tuple[optax.Updates, SparsifyState]:
        check_given("train_only", grads, state, params, SparsifyState)
        ranks_dense = _ranks_dense_weights(state.mask_state) is not None
        mask_state = (
            state.mask_state
            if ranks_dense
            else _updated_masks(transform, grads, state, params, extra)
        )
        trained = like(optax.tree.get(mask_state, "trained", mask_state.masks), params)
        told = {"mask_state": mask_state, **extra}
        updates, inner_state = sparse_update(
            inner, grads, state.inner_state, params, trained, told, dense=True
        )
        inner_state = where_kept(inner_state, state.inner_state, trained, params)
        updates = apply_masks(updates, trained)
        if ranks_dense:
            return updates, _next(transform, grads, state, inner_state, params, updates, extra)
        step = optax.safe_increment(state.step)
        return updates, SparsifyState(step, mask_state, inner_state)

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


def _next(
    transform: MaskTransform,
    grads: Any,
    state: SparsifyState,
    inner_state: optax.OptState,
    params: Params,
    updates: optax.Updates,
    extra: dict,
) -> SparsifyState:
    """The state after this step, its masks those of the weights after it."""
    step = optax.safe_increment(state.step)
    after = SparsifyState(step, state.mask_state, inner_state)
    params = optax.apply_updates(params, updates)
    return after._replace(mask_state=_updated_masks(transform, grads, after, params, extra))


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


def _ranks_dense_weights(mask_state: Any) -> Any:
    """The part of a state that compares weights that stay dense; None if none does."""

    def ranks_dense(node: Any) -> bool:
        return getattr(node, "ranks_dense_weights", False) is True

    nodes = jax.tree.leaves(mask_state, is_leaf=ranks_dense)
    return next((node for node in nodes if ranks_dense(node)), None)


def _check_unmasked(what: str, inner_state: Any) -> None:
    if any(mask_states(inner_state)):
        raise ValueError(
            f"the optimizer given to {what} already has masks. Wrap it once, with "
            "jp.chain(transform, ...) for several mask transforms."
        )
