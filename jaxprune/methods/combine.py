"""Mask transforms from mask transforms: when they act, and one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.base import Masks, MaskState, MaskTransform, Params, copied, is_mask
from jaxprune.masks import like
from jaxprune.sharding import sharded_like
from jaxprune.trees import is_none, map_scored


def every(
    n: int, transform: MaskTransform, start: int = 0, stop: int | None = None
) -> MaskTransform:
    """`transform` at the steps start, start + n, ... and stop; between them the masks rest.

    The last update, at `stop`, reads its schedules at their very end (`at_end=True`), so that it
    lands exactly on the last value of a schedule for any n, start and stop.

    A step without an update costs nothing, also under `vmap`, where lanes may be at different
    steps.

    Args:
      n: steps between updates, at least 1.
      start: the first step with an update; steps count from 0.
      stop: the last step with an update, at least `start`; None for no end.

    Raises:
      ValueError, TypeError: if these do not hold, or `transform` is no mask transform.
    """
    check_transform("every", transform)
    _check_step("every(n, ...)", "n", n, least=1)
    _check_step("every", "start", start, least=0)
    if stop is not None:
        _check_step("every", "stop", stop, least=0)
        if stop < start:
            raise ValueError(f"every needs start <= stop; got start={start}, stop={stop}.")

    def now(step: Any, at_end: Any) -> tuple[jax.Array, dict[str, Any]]:
        """Whether an update is due, and the time that the transform receives."""
        step = jnp.asarray(step, jnp.int32)
        # an outer `every` on its last update forces this one, unless it has stopped
        due = (step >= start) & (((step - start) % n == 0) | at_end)
        if stop is not None:
            due = (due & (step < stop)) | (step == stop)
            at_end = at_end | (step == stop)
        return due, {"step": step, "at_end": at_end}

    def update(
        state: Any, params: Params, *, step: Any, at_end: Any = False, **context: Any
    ) -> Any:
        due, time = now(step, at_end)
        return where_due(due, lambda: transform.update(state, params, **time, **context), state)

    def due(state: Any, *, step: Any, at_end: Any = False) -> Any:
        due, time = now(step, at_end)
        return due if transform.due is None else due & transform.due(state, **time)

    return MaskTransform(transform.init, update, due)


def never_due(state: Any, **time: Any) -> Any:
    """The `due` of masks that never change."""
    return jnp.zeros((), bool)


class OnceState(NamedTuple):
    """State of `once`: the masks, whether they were made (bool scalar), and the rest."""

    masks: Masks
    done: jax.Array
    rest: Any


def once(transform: MaskTransform) -> MaskTransform:
    """`transform` at its first update; after that its masks are frozen."""
    check_transform("once", transform)

    def init(params: Params) -> OnceState:
        state = transform.init(params)
        return OnceState(state.masks, jnp.zeros((), bool), without_masks(state))

    def update(
        state: OnceState, params: Params, *, step: Any, at_end: Any = False, **context: Any
    ) -> OnceState:
        time = {"step": step, "at_end": at_end}

        def first() -> OnceState:
            rest = with_masks(state.rest, state.masks)
            new = transform.update(rest, params, **time, **context)
            return OnceState(new.masks, jnp.ones((), bool), without_masks(new))

        return where_due(due(state, **time), first, state)

    def due(state: OnceState, **time: Any) -> Any:
        if transform.due is None:
            return ~state.done
        return ~state.done & transform.due(with_masks(state.rest, state.masks), **time)

    return MaskTransform(init, update, due)


def fixed(masks: Masks | Callable[[Params], Masks]) -> MaskTransform:
    """The given masks, for ever: lottery tickets, soup children, fine-tuning.

    They hold alone, and in a `chain` with transforms that only prune. A function instead of masks
    makes them from the first params: pruning at initialization.

        fixed(lambda params: select(snip(loss, params), global_threshold, 0.98))

    Args:
      masks: like the params, bool, None where never pruned; or `params -> masks`.

    Raises:
      ValueError: (in init) if they do not fit the params; it names the leaf.
      TypeError: if a mask is not bool.
    """
    if not callable(masks):
        _check_masks(masks)

    def init(params: Params) -> MaskState:
        given = masks(params) if callable(masks) else masks
        _check_masks(given)
        # copies: a state may be donated, and the caller's masks live on
        return MaskState(copied(map_scored(sharded_like, like(given, params), params)))

    def update(state: MaskState, params: Params, **context: Any) -> MaskState:
        return state

    return MaskTransform(init, update, never_due)


def _check_masks(masks: Masks) -> None:
    for mask in jax.tree.leaves(masks):
        if not is_mask(mask):
            raise TypeError(
                "masks are bool arrays, True = kept; got "
                f"{getattr(mask, 'dtype', type(mask).__name__)}. From gates or zeros: "
                "jax.tree.map(lambda g: g > 0, gates)."
            )


class ChainState(NamedTuple):
    """State of `chain`: the masks, and the other state of each of its transforms."""

    masks: Masks
    rests: tuple[Any, ...]


def chain(*transforms: MaskTransform) -> MaskTransform:
    """Mask transforms one after the other; each starts from the masks of the one before.

    The first masks keep a weight if all transforms keep it. Later a transform that grows weights
    (`set`, `rigl`, `granet`) or chooses masks anew (`dpf`) may keep weights outside the masks of
    the others, also of `fixed`.
    """
    if not transforms:
        raise ValueError("chain needs at least one mask transform.")
    for transform in transforms:
        check_transform("chain", transform)

    def init(params: Params) -> ChainState:
        states = [transform.init(params) for transform in transforms]
        masks = states[0].masks
        for state in states[1:]:
            # None: this transform never prunes the leaf
            masks = jax.tree.map(
                lambda a, b: b if a is None else a if b is None else a & b,
                masks,
                state.masks,
                is_leaf=is_none,
            )
        return ChainState(masks, tuple(without_masks(state) for state in states))

    def update(state: ChainState, params: Params, **context: Any) -> ChainState:
        masks, rests = state.masks, []
        for transform, rest in zip(transforms, state.rests, strict=True):
            new = transform.update(with_masks(rest, masks), params, **context)
            masks = new.masks
            rests.append(without_masks(new))
        return ChainState(masks, tuple(rests))

    def due(state: ChainState, **time: Any) -> Any:
        each = [
            transform.due(with_masks(rest, state.masks), **time)
            for transform, rest in zip(transforms, state.rests, strict=True)
            if transform.due is not None
        ]
        return jnp.stack(each).any()

    all_known = all(transform.due is not None for transform in transforms)
    return MaskTransform(init, update, due if all_known else None)


# --- the only lax.cond of the library ------------------------------------------------------------


@jax.custom_batching.custom_vmap
def _in_any_lane(due: jax.Array) -> jax.Array:
    return due


@_in_any_lane.def_vmap
def _(axis_size, in_batched, due):
    return _in_any_lane(due.any() if in_batched[0] else due), False


def where_due(due: jax.Array, update: Callable[[], Any], state: Any) -> Any:
    """`update()` where `due`, else `state`; computed only if some lane of a `vmap` is due.

    Under `vmap` a `lax.cond` on a batched predicate becomes a select that computes both sides at
    every step. Here the predicate is reduced over the lanes first: it stays a branch, with the
    select among lanes inside.
    """

    def updated() -> Any:
        return jax.tree.map(lambda new, old: jnp.where(due, new, old), update(), state)

    return lax.cond(_in_any_lane(due), updated, lambda: state)


def without_masks(state: Any) -> Any:
    return state._replace(masks=None)


def with_masks(state: Any, masks: Masks) -> Any:
    return state._replace(masks=masks)


def check_transform(what: str, transform: Any) -> None:
    if not isinstance(transform, MaskTransform):
        raise TypeError(
            f"{what} needs a mask transform, such as jp.prune(...); got "
            f"{getattr(transform, '__name__', None) or type(transform).__name__}."
        )


def _check_step(what: str, argument: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what}: {argument} is a number of steps, an int; got {value!r}.")
    if value < least:
        raise ValueError(f"{what}: {argument} must be at least {least}; got {value}.")
