"""What methods of pruning at initialisation are given: losses on batches, and paths of ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common.data import Split
from recipes.common.models import LossFn, classification

METHODS = ("snip", "grasp", "synflow", "force", "iter_snip", "magnitude", "random")
ROUNDS = {"synflow": 100, "force": 60, "iter_snip": 60}
PER_CLASS = {"grasp": 25}  # examples of each class that its authors take
TEMPERATURE = 200  # of GraSP

Forward = Callable[[Any], jax.Array]
MasksOf = Callable[[jax.Array, Any, Any, Split], Any]  # (key, params, sparsity, data) -> masks


def masks_of(
    method: str,
    module: nn.Module,
    rows: Callable[[jax.Array], jax.Array],
    rounds: int | None = None,
) -> MasksOf:
    """One of `METHODS`, as a function of one seed; `rows` draws from the data what it is to see.

    Weights are chosen under one threshold; at random, as many of each layer as `erk` says.
    """
    rounds = ROUNDS.get(method, 1) if rounds is None else rounds

    def masks(key: jax.Array, params: Any, sparsity: Any, data: Split) -> Any:
        drawn = rows(key)
        seen = Split(data.images[drawn], data.labels[drawn])
        loss = loss_on(classification(module), seen)
        match method:
            case "synflow":
                forward = flow(module, data.images.shape[1:])
                return jp.synflow(forward, params, sparsity, rounds)
            case "force":
                return jp.force(loss, params, sparsity, rounds)
            case "iter_snip":
                return jp.iter_snip(loss, params, sparsity, rounds)
            case "random":
                return jp.select(jp.random(key)(jp.kernels(params)), jp.erk, sparsity)
            case "magnitude":
                scores = jp.magnitude(jp.kernels(params))
            case "snip":
                scores = jp.snip(loss, params)
            case "grasp":
                scores = jp.grasp(loss_on(classification(module, TEMPERATURE), seen), params)
        return jp.select(scores, jp.global_threshold, sparsity)

    return masks


def loss_on(loss_fn: LossFn, batch: Split) -> Callable[[Any], jax.Array]:
    """The loss of first weights on a batch: there are no running statistics yet."""
    return lambda params: loss_fn(params, {}, *map(jnp.asarray, batch))[0]


@cache
def flow(module: nn.Module, shape: tuple[int, ...]) -> Forward:
    """What SynFlow follows: params -> the outputs of the network for ones, its norms left out.

    Group norm divides by what it sees, and batch norm by statistics of data: both would break the
    conservation of flow. Their scales are 1 at first.
    """

    def forward(params: Any) -> jax.Array:
        with nn.intercept_methods(_without_norms):
            logits: Any = module.apply({"params": params}, jnp.ones((1, *shape)))
        return logits

    return forward


def _without_norms(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if isinstance(context.module, (nn.GroupNorm, nn.BatchNorm)):
        return args[0]
    return call(*args, **kwargs)


def weights_on_paths(forward: Forward, params: Any, masks: Any) -> np.ndarray:
    """How many weights each seed of a stack keeps on paths from inputs to outputs: int (seeds,).

    The others do nothing: nothing reaches them, or nothing comes of them.

    Reference: Vysogorets and Kempe, 2023, Connectivity Matters: Neural Network Pruning Through the
    Lens of Effective Sparsity.
    """
    return np.asarray(_on_paths(forward, params, masks))


@partial(jax.jit, static_argnums=0)
def _on_paths(forward: Forward, params: Any, masks: Any) -> jax.Array:
    def weight(mask: jax.Array | None, w: jax.Array) -> jax.Array:
        if mask is None:
            return jnp.zeros_like(w)
        # a unit gives on average what it gets, so that deep networks neither fade nor overflow
        return mask * (mask.shape[-1] / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0))

    def one_seed(params: Any, masks: Any) -> jax.Array:
        ones = jax.tree.map(weight, masks, params, is_leaf=lambda leaf: leaf is None)
        shares = jax.tree.leaves(jp.flow_shares(forward, ones))
        return jnp.stack([jnp.sum(share > 0, dtype=jnp.int32) for share in shares]).sum()

    return jax.vmap(one_seed)(params, masks)
