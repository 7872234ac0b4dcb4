"""How long networks take to read a batch: timed beside each other, with an A/A control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structured.compact import Compact
from recipes.common.timing import Cell, Measured, Spread, measure, noise, ratio

BATCHES = (1, 256)
CONTROL = "A/A"  # the first network again: what its times differ by is noise


def latencies(
    networks: Mapping[str, Compact],
    image: tuple[int, ...],
    batches: Sequence[int] = BATCHES,
    rounds: int = 15,
    seed: int = 0,
    least_seconds: float = 0.02,
) -> dict[str, dict[str, Any]]:
    """{batch: {name: {"seconds", "times_as_fast"}}}, each {"median", "low", "high"}.

    `times_as_fast` compares with the first network, paired by round; that of `CONTROL`, which is
    the first network once more, is what may be noise.

    Args:
      networks: `fn(params, images)`; the first is what the others are compared with.
      image: the shape of one, (h, w, c).
      rounds: how often each is timed, in an order that is drawn anew.
      least_seconds: what a sample lasts; as many batches as that takes are timed together.
    """
    first = next(iter(networks))
    found = {}
    for batch in batches:
        images = np.random.default_rng(seed).standard_normal((batch, *image), np.float32)
        timed = {**networks, CONTROL: networks[first]}
        cells = [forward(name, own.fn, own.params, images) for name, own in timed.items()]
        title = f"forward passes, batch of {batch}"
        measured = measure(title, cells, rounds, seed, least_seconds)
        found[str(batch)] = {name: _numbers(measured, name, first) for name in measured}
    return found


def forward(name: str, fn: Callable[..., Any], variables: Any, images: Any) -> Cell:
    """A pass as a step: its images are shifted by its logits, so that one waits for the other."""

    def step(shift: jax.Array, variables: Any, images: jax.Array) -> jax.Array:
        return 1e-6 * jnp.mean(fn(variables, images + shift))

    return Cell(name=name, state=partial(jnp.zeros, ()), step=step, inputs=(variables, images))


def _numbers(measured: Mapping[str, Measured], name: str, first: str) -> dict[str, Any]:
    faster = (noise if name == CONTROL else ratio)(measured, first, name)
    seconds = Spread.of(measured[name].seconds)
    return {"seconds": seconds._asdict(), "times_as_fast": faster._asdict()}
