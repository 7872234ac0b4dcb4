"""The times of one product in several forms, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SAMPLE = 2e-3  # seconds


def times(
    kernel: jax.Array,
    forms: Sequence[Any],
    rows: Sequence[int],
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Seconds of `x @ kernel` ("dense") and of each form, the sum over products of so many rows.

    Each round times all of them, in another random order; the number is the median over rounds.
    """
    run = jax.jit(lambda x, form: form.multiply(x))
    dense = jax.jit(lambda x, kernel: x @ kernel)
    total: dict[str, float] = {}
    random = np.random.default_rng(0)
    for n in rows:
        x = jnp.asarray(random.standard_normal((n, kernel.shape[0])), kernel.dtype)
        calls: dict[str, Callable[[], Any]] = {"dense": partial(dense, x, kernel)}
        calls |= {own.name: partial(run, x, own.form) for own in forms}
        repeats = {name: _repeats(call, clock) for name, call in calls.items()}
        seen: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name in random.permutation(list(calls)).tolist():
                seen[name].append(_seconds(calls[name], repeats[name], clock))
        for name, values in seen.items():
            total[name] = total.get(name, 0.0) + float(np.median(values))
    return total


def _repeats(call: Callable[[], Any], clock: Callable[[], float]) -> int:
    """Calls that take about a sample; the first ones compile."""
    jax.block_until_ready(call())
    return max(1, min(1000, round(SAMPLE / max(_seconds(call, 3, clock), 1e-7))))


def _seconds(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    """The mean time of a call."""
    began = clock()
    for _ in range(repeats):
        result = call()
    jax.block_until_ready(result)
    return max((clock() - began) / repeats, 1e-9)
