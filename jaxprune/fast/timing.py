"""The times of one product in several forms, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SAMPLE = 2e-3  # seconds


class Product(NamedTuple):
    """A product whose time counts.

    Attributes:
      x: the shape and the dtype of the inputs.
      dense: `(x, kernel) -> y`.
      formed: `(x, form) -> y`.
    """

    x: jax.ShapeDtypeStruct
    dense: Callable[[jax.Array, jax.Array], jax.Array]
    formed: Callable[[jax.Array, Any], jax.Array]


def of_rows(n: int, kernel: jax.Array) -> Product:
    """`x @ kernel` with so many rows of x."""
    x = jax.ShapeDtypeStruct((n, kernel.shape[0]), kernel.dtype)
    return Product(x, jnp.matmul, lambda x, form: form.multiply(x))


def times(
    kernel: jax.Array,
    forms: Sequence[Any],
    products: Sequence[Product],
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Seconds of the dense products ("dense") and of each form, the sum over products.

    Each round times all of them, in another random order; the number is the median over rounds.
    """
    total: dict[str, float] = {}
    random = np.random.default_rng(0)
    for product in products:
        run, dense = jax.jit(product.formed), jax.jit(product.dense)
        x = jnp.asarray(random.standard_normal(product.x.shape), product.x.dtype)
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
