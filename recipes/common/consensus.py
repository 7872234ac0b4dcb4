"""An arm whose gates depend on the input, until all inputs agree on one network.

A linear map of the image decides of every neuron, straight through. A penalty on disagreement and
a budget on the mean over the batch leave one network; then the map is dropped.

After Zhi et al., Learning a Consensus Sub-Network with Polarization Regularization and One Pass
Training; the penalty's form, and the map, are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import gating
from recipes.common.arms import Arm
from recipes.common.models import classification

EXAMPLES = 256  # on which the vote is taken, in tests and for the masks
STRENGTH = 1.0  # of the penalty on disagreement


def arm(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    neurons: gating.Level,
    plan: gating.Plan,
    images: np.ndarray,
) -> Arm:
    """`neurons` says what is gated; `images` vote for the network that is tested and kept."""
    voters = jnp.asarray(images[:EXAMPLES])

    def logits(params: Any) -> Any:
        pixels = images[0].size
        maps = lambda s: {"kernel": jnp.zeros((pixels, s.size)), "bias": s}
        return {group: maps(s) for group, s in neurons.logits(params).items()}

    def votes(maps: Any) -> Any:
        """Of each neuron, how much more than half of the images want it open."""
        means = jp.consensus(decisions(maps, voters))
        return jax.tree.map(lambda m: m - 0.5, means)

    level = neurons._replace(logits=logits, static=votes)
    return gating.arm(module, optimizer, level, plan, _loss(module, neurons, plan))


def gate() -> jp.Gate:
    """Of votes: open if most are for it; how probably, by their share."""
    share = lambda votes: jax.tree.map(lambda v: v + 0.5, votes)
    return jp.straight_through()._replace(p_open=share)


def decisions(maps: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Binary gates of each image: {group: (images, neurons)}."""
    x = images.reshape(len(images), -1)
    logits = {group: x @ own["kernel"] + own["bias"][None] for group, own in maps.items()}
    return jp.straight_through().sample(None, logits)


def _loss(module: nn.Module, neurons: gating.Level, plan: gating.Plan) -> Callable[..., Any]:
    cross_entropy, target = classification(module), plan.target
    assert target is not None

    def loss_fn(params, batch_stats, images, labels, step, key):
        own, gating_now = gating.network_of(params), step <= plan.harden
        gates = decisions(params[gating.GATES], images)
        kept = neurons.kept(jp.consensus(gates), own)
        price = STRENGTH * jp.disagreement(gates)
        price += jp.lagrangian(params[gating.MULTIPLIERS], kept, target(step))
        multiplied = jax.tree.map(lambda g: jnp.where(gating_now, g, 1.0), gates)
        with nn.intercept_methods(_multiply(multiplied, neurons.readers(own))):
            loss, aux = cross_entropy(own, batch_stats, images, labels)
        return loss + jnp.where(gating_now, price, 0.0), aux

    return loss_fn


def _multiply(gates: dict[str, jax.Array], readers: dict[str, str]) -> Any:
    """Multiplies what a layer reads by the gates of its group, each example's by its own."""

    def interceptor(call, args, kwargs, context):
        group = readers.get(context.module.name or "")
        if group is None or context.method_name != "__call__":
            return call(*args, **kwargs)
        x, *rest = args
        own = gates[group].reshape(len(x), *(1,) * (x.ndim - 2), -1)
        return call(x * own.astype(x.dtype), *rest, **kwargs)

    return interceptor
