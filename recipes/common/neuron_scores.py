"""What each neuron is worth, by the criteria that recipes offer: of a stack of networks at once.

References: Li et al., 2017 (l1); Molchanov et al., 2019 (taylor); Liu et al., 2017 (scale); He et
al., 2019 (median); Fang et al., 2023 (sums over all that a neuron is on, and their mean).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from jaxprune.coupling.structure import Structure
from recipes.common.data import Split
from recipes.common.errors import RecipeError

NAMES = ("l1", "l2", "taylor", "scale", "median", "random")
SCOPES = ("global", "local", "isomorphic")

# (a stack of variables, the kept neurons of each, keys) -> {group: (networks, size)}
Scored = Callable[[Any, dict[str, jax.Array], jax.Array], dict[str, jax.Array]]


def score(
    name: str, structure: Structure, module: nn.Module, examples: Split, batch_size: int
) -> Scored:
    """The criterion called `name`; each group's scores have the mean 1 over its kept neurons.

    What is not kept scores -inf. `examples` are what taylor takes its gradients on.

    Raises:
      RecipeError: if it can't score these networks.
    """
    by: Any = {
        "l1": lambda key: jp.per_group(structure),
        "l2": lambda key: jp.per_group(structure, jp.square),
        "taylor": lambda key: jp.per_group(structure, jp.saliency),
        "scale": lambda key: jp.per_group(structure, prunable=jp.matching("*/scale")),
        "median": lambda key: jp.geometric_median(structure),
        "random": lambda key: jp.random_neurons(key, structure),
    }[name]
    batches = jax.device_put(in_batches(examples, batch_size))
    gradients = partial(mean_gradient, module) if name == "taylor" else None

    def of_one(
        variables: Any, kept: dict[str, jax.Array], key: jax.Array, grads: Any
    ) -> dict[str, jax.Array]:
        found = by(key)(variables, grads=grads)
        return {group: normalised(own, kept[group]) for group, own in found.items()}

    try:
        shapes = {group: jnp.ones(own.size, bool) for group, own in structure.groups.items()}
        jax.eval_shape(of_one, structure.shapes, shapes, jax.random.key(0), structure.shapes)
    except ValueError as error:
        raise RecipeError(f"--score {name}: {' '.join(str(error).split())}") from error

    @jax.jit
    def scored(stack: Any, kept: dict[str, jax.Array], keys: jax.Array, batches: Split) -> Any:
        grads = None if gradients is None else gradients(stack, batches)
        return jax.vmap(of_one)(stack, kept, keys, grads)

    return lambda stack, kept, keys: scored(stack, kept, keys, batches)


def normalised(own: jax.Array, kept: jax.Array) -> jax.Array:
    """Scores (size,) over the mean of those that are kept; -inf where a neuron is not."""
    mean = jnp.sum(jnp.where(kept, own, 0)) / jnp.maximum(jnp.sum(kept, dtype=jnp.int32), 1)
    return jnp.where(kept, own / jnp.maximum(mean, jnp.finfo(own.dtype).tiny), -jnp.inf)


def in_batches(examples: Split, batch_size: int) -> Split:
    """All that fill a batch, with an axis of batches in front; fewer than one batch make one."""
    n = min(batch_size, len(examples.labels))
    whole = len(examples.labels) // n
    images, labels = (x[: whole * n].reshape(whole, n, *x.shape[1:]) for x in examples)
    return Split(images, labels)


def mean_gradient(module: nn.Module, stack: Any, batches: Split) -> Any:
    """The gradient of the mean loss by each network's variables; in evaluation mode, as pruned."""

    def loss(variables: Any, batch: Split) -> jax.Array:
        logits: Any = module.apply(variables, batch.images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    def add(total: Any, batch: Split) -> tuple[Any, None]:
        grads = jax.vmap(jax.grad(loss), in_axes=(0, None))(stack, batch)
        return jax.tree.map(jnp.add, total, grads), None

    zeros = jax.tree.map(jnp.zeros_like, stack)
    total, _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda g: g / len(batches.labels), total)


def allocation(scope: str, structure: Structure) -> Any:
    """What neurons are ranked among: all, their own group, or the groups of a kind."""
    return {
        "global": lambda: jp.global_threshold,
        "local": lambda: jp.uniform,
        "isomorphic": lambda: jp.isomorphic(structure),
    }[scope]()
