"""MTT: some steps on synthetic images lead to where many steps on real ones lead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Params, widened
from jaxprune.distill.classes import Augment, augmented, keys_of
from jaxprune.trees import check_like


def trajectory_matching(
    loss: Callable[[Params, jax.Array, jax.Array], jax.Array],
    start: Params,
    target: Params,
    images: jax.Array,
    labels: jax.Array,
    rate: Any,
    *,
    augment: Augment | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """How far a student that starts with an expert stays from it, relative to the expert's way.

        |student after N steps of SGD from start - target|^2 / |start - target|^2

    Differentiable in `images`, and in `rate`, which the authors learn too. Each step is computed
    again on the way back (`jax.checkpoint`), so that memory holds N copies of the params and the
    activations of one step.

    Args:
      loss: `(params, images (n, ...), labels (n,)) -> scalar`, the mean over images.
      start: the params of an expert, trained on real images, at some epoch.
      target: the params of the same expert some epochs later.
      images: (steps, n, ...), the synthetic images of each of the N steps:
        `synthetic[indices]` of an order `indices` (steps, n).
      labels: (steps, n), int32, or (steps, n, classes) if the loss takes these.
      rate: of SGD, a scalar, positive.
      augment: `(key, images) -> images`, such as `siamese()`; each step has a draw of its own.
      key: for `augment`.

    Returns:
      A float32 scalar: 1 for a student that does not move, 0 for one that arrives; infinity where
      the expert does not move.

    Raises:
      ValueError: if there is no step, images and labels have different steps, params differ in
        their trees, or `augment` has no key.

    Reference: Cazenavette et al., 2022, Dataset Distillation by Matching Training Trajectories.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> loss = lambda w, images, labels: -w * images.mean()  # one step moves by rate * image
    >>> start, target = jnp.float32(0), jnp.float32(1)
    >>> images, labels = jnp.array([[4.]]), jnp.array([[0]])
    >>> round(float(jp.distill.trajectory_matching(loss, start, target, images, labels, 0.1)), 4)
    0.36
    """
    what = "trajectory_matching"
    if jnp.ndim(images) < 2 or jnp.ndim(labels) < 2 or images.shape[:2] != labels.shape[:2]:
        raise ValueError(
            f"{what}: images and labels begin with the same two axes, (steps, examples of a step); "
            f"got {jnp.shape(images)} and {jnp.shape(labels)}. Give synthetic[indices] and "
            "labels[indices], with indices of shape (steps, n)."
        )
    if 0 in images.shape[:2]:
        raise ValueError(f"{what}: at least one step of one image; images have {images.shape}.")
    check_like(f"{what}: target", target, start)
    keys = keys_of(what, augment, key, len(images))

    @jax.checkpoint
    def step(params: Params, batch: Any) -> tuple[Params, None]:
        key, images, labels = batch
        slopes = jax.grad(loss)(params, augmented(augment, key, images), labels)
        return jax.tree.map(lambda w, g: (w - rate * g).astype(w.dtype), params, slopes), None

    student, _ = jax.lax.scan(step, start, (keys, images, labels))
    way, left = _squared_distance(start, target), _squared_distance(student, target)
    return jnp.where(way > 0, left / jnp.where(way > 0, way, 1), jnp.inf)


def _squared_distance(a: Params, b: Params) -> jax.Array:
    """float32 scalar."""
    difference = lambda x, y: widened(jnp.asarray(x)) - widened(jnp.asarray(y))
    return optax.tree.norm(jax.tree.map(difference, a, b), squared=True)
