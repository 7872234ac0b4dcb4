"""Work on a stack of networks, one network after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from recipes.common import lanes
from recipes.common.journal import Journal


class Worked(NamedTuple):
    """Networks after some work, and the time of each."""

    params: Any  # (networks, ...)
    seconds: jax.Array  # (networks,)


def one_by_one(
    log: Journal, name: str, stack: Any, work: Callable[[int, Any], Any], words: str
) -> Worked:
    """`work(i, params)` of each network of a stack, which gives params of the same shapes.

    A resumed run goes on with the next network.
    """
    count = len(jax.tree.leaves(stack)[0])

    def each(so_far: Worked, start: int, at: Any) -> Worked:
        for i in range(start, count):
            began = time.perf_counter()
            one = jax.block_until_ready(work(i, lanes.lane_of(stack, i)))
            seconds = time.perf_counter() - began
            put = lambda stack, x, i=i: stack.at[i].set(x)
            params = jax.tree.map(put, so_far.params, one)
            so_far = Worked(params, so_far.seconds.at[i].set(seconds))
            at(i + 1, so_far)
        return so_far

    empty = jax.tree.map(jnp.zeros_like, Worked(stack, jnp.zeros(count)))
    return log.once(name, count, empty, each, words)
