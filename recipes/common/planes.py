"""The training loss around networks and between them: planes, and what they are drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common.data import Split
from recipes.common.figures.planes import Mark, Panel, square

Params = Any
Measure = Callable[[Params], Any]  # params -> {"loss", "error"}, or the loss alone


class Losses(NamedTuple):
    """The training loss as functions of the params, over batches that are on the device."""

    both: Measure  # {"loss", "error"}
    loss: Measure  # the loss alone: it has derivatives


def losses_on(module: nn.Module, split: Split, examples: int) -> Losses:
    """Loss and error on the first examples, in batches of at most 500, all of one size."""
    batches = math.ceil(examples / 500)
    size = examples // batches
    images, labels = (part[: batches * size] for part in split)
    stacked = jax.device_put(
        (images.reshape(batches, size, *images.shape[1:]), labels.reshape(batches, size))
    )

    def both(params: Params, batch: Any) -> dict[str, jax.Array]:
        logits: Any = module.apply({"params": params}, batch[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return {"loss": losses.mean(), "error": jnp.mean(jnp.argmax(logits, -1) != batch[1])}

    def loss(params: Params, batch: Any) -> jax.Array:
        return both(params, batch)["loss"]

    return Losses(jp.over_batches(both, stacked), jp.over_batches(loss, stacked))


def through(losses: Losses, three: dict[str, Params], points: int) -> Panel:
    """The training loss on the plane through three models, by name."""
    frame = jp.plane_through(*three.values())
    where = {label: jp.coordinates(frame, params) for label, params in three.items()}
    marks = [Mark(label, float(at[0]), float(at[1])) for label, at in where.items()]
    xs, ys = square(marks, points)
    return Panel(xs, ys, np.asarray(jp.plane(losses.both, *frame, xs, ys)["loss"]), marks)


def around(
    losses: Losses,
    label: str,
    params: Params,
    masks: Any,
    key: jax.Array,
    reach: float,
    points: int,
) -> Panel:
    """The training loss on a random, filter-normalised plane around a model."""
    x, y = (jp.random_direction(key, params, masks) for key in jax.random.split(key, 2))
    xs = np.linspace(-reach, reach, points, dtype=np.float32)
    values = jp.plane(losses.both, params, x, y, xs, xs)["loss"]
    return Panel(xs, xs, np.asarray(values), [Mark(label, 0.0, 0.0)])
