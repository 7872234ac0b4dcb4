"""Whether training is stable to the noise of SGD: children of one state, and their instability.

`train` is not jitted here: give `jax.jit(train, static_argnames=("start", "stop"))`, or its
operations run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.analysis.connectivity import instability
from jaxprune.analysis.pairs import pairwise
from jaxprune.base import Params
from jaxprune.losses import Loss

# (state, key, start, stop) -> state: runs the steps start, start + 1, ..., stop - 1
Train = Callable[[Any, jax.Array, int, int], Any]


def fork(train: Train, state: Any, keys: jax.Array, start: int, stop: int) -> Any:
    """Children of one state, each trained with its own noise: a stack, in one `vmap`.

    The children start from one state (weights, masks, moments, count), at the same position of
    every schedule. They differ only in their keys; equal keys give equal children.

    Args:
      train: `(state, key, start, stop) -> state`, pure: runs the steps from `start` up to `stop`.
        The key, folded with the step, decides everything random (order of the data, augmentation).
      state: the state at step `start`.
      keys: one for each child, (children,).
      start, stop: ints, 0 <= start <= stop.

    Returns:
      States with a leading axis of children.

    Raises:
      ValueError, TypeError: if these do not hold.
    """
    _check_step("start", start, 0)
    _check_step("stop", stop, start)
    if start == stop:
        return jax.tree.map(lambda x: jnp.stack([x] * len(keys)), state)
    return jax.vmap(lambda key: train(state, key, start, stop))(keys)


def instability_at(
    key: jax.Array,
    train: Train,
    loss: Loss,
    state: Any,
    forks: Sequence[int],
    stop: int,
    children: int = 3,
    points: Any = 11,
    params: Callable[[Any], Params] = attrgetter("params"),
) -> Any:
    """The instability of children forked at each of these steps: (forks, children, children).

    One trunk is trained from step 0. At each fork `children` copies train on to `stop`, each with
    its own noise, and `instability` is measured between every two of them. Sweep `forks` to find
    the step from which training is stable. For a sparse network the state has masks, the same for
    all children: `sparsify(optimizer, fixed(masks))`.

    Args:
      key: of the trunk, `fold_in(key, 0)`, and of child i, `fold_in(key, i + 1)`.
      train: see `fork`.
      loss: `params -> scalar` or `{name: scalar}`; see `loss_along`.
      state: the state at step 0.
      forks: rising steps in [0, stop].
      stop: the step at which all children end.
      children: how many, at least 2; `jackknife` needs 3.
      points: see `loss_along`.
      params: from a state to the tree to interpolate; by default its field `params`.

    Returns:
      The tree that `loss` returns, with a matrix of each fork for each scalar; for mean and error
      over pairs, `jax.vmap(jackknife)`.

    Raises:
      ValueError, TypeError: if these do not hold.

    Reference: Frankle et al., 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis.
    """
    if isinstance(forks, int) or not len(forks):
        raise ValueError(
            f"instability_at: forks is a list of steps, such as [0, 100]; got {forks!r}."
        )
    at_least = 0
    for start in forks:
        _check_step("every fork (they rise)", start, at_least)
        _check_step("stop", stop, start)
        at_least = start + 1
    _check_step("children", children, 2)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(children + 1))

    matrices, now = [], 0
    for start in forks:
        state = state if start == now else train(state, keys[0], now, start)
        now = start
        ends = params(fork(train, state, keys[1:], start, stop))
        matrices.append(pairwise(partial(instability, loss, points=points), ends, diagonal=0.0))
    return jax.tree.map(lambda *each: jnp.stack(each), *matrices)


def _check_step(what: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{what} must be an int; got {value!r}.")
    if value < least:
        raise ValueError(f"{what} must be at least {least}; got {value}.")
