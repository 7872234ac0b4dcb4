"""Training again and again: from given weights, under given masks, by given rates.

Lanes are networks that train side by side: replicates of a ticket, children of a soup, controls.
What differs between them is data (weights, masks, rates, weight decay, order of the examples), and
so are the phases of an iterative method: all of them run one compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from jaxprune.masks import all_kept
from recipes.common import training
from recipes.common.data import Split
from recipes.common.training import Arm, TrainState, Weights

At = Callable[[int, TrainState], None]  # called with the step, between calls of the device


class Lane(NamedTuple):
    """How a network trains. With a lane axis in front of every array, a stack of lanes."""

    rates: jax.Array  # the learning rate of every step (steps,); after the last, 0
    weight_decay: jax.Array  # (), coupled: added to the gradient


class Phases(NamedTuple):
    """What all phases share."""

    arm: Arm
    chunk: training.Chunk
    train: Split  # on the device
    batch_size: int
    chunk_steps: int


def phases(
    module: nn.Module,
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation],
    train: Split,
    batch_size: int,
    chunk_steps: int,
    everything: Any = None,
) -> Phases:
    """The program of all phases; `optimizer` makes one of a schedule (`settings.OPTIMIZERS`).

    `everything` are masks that keep all, of the leaves that are pruned; None for the kernels.
    """
    image = jnp.asarray(train.images[:1])
    params = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    everything = all_kept(jp.kernels(params)) if everything is None else everything

    def of_lane(lane: Lane) -> optax.GradientTransformation:
        decayed = optax.chain(
            optax.add_decayed_weights(lane.weight_decay),
            optimizer(lambda count: lane.rates.at[count].get(mode="fill", fill_value=0.0)),
        )
        return jp.sparsify(decayed, jp.fixed(everything))

    arm = Arm(module, of_lane, Weights.SPARSE)
    return Phases(arm, training.make_chunk(arm), jax.device_put(train), batch_size, chunk_steps)


def rates(schedule: optax.Schedule, steps: int, length: int | None = None) -> jax.Array:
    """The table of a schedule: its first `steps` rates, then zeros up to `length`."""
    table = jax.vmap(lambda count: jnp.asarray(schedule(count), jnp.float32))(jnp.arange(steps))
    return jnp.pad(table, (0, (length or steps) - steps))


def begin(p: Phases, params: Any, batch_stats: Any, masks: Any, lanes: Lane) -> TrainState:
    """Fresh optimizers at these weights under these masks; every array has a lane axis."""

    @jax.vmap
    def state(params, batch_stats, masks, lane):
        params = jp.apply_masks(params, masks)
        opt_state = training.optimizer_of(p.arm, lane).init(params)
        held = opt_state.mask_state._replace(masks=masks)
        return TrainState(params, batch_stats, opt_state._replace(mask_state=held))

    # copied, since a state is donated whole: no two of its leaves may share memory
    return jax.tree.map(jnp.copy, state(params, batch_stats, masks, lanes))


def advance(
    p: Phases,
    state: TrainState,
    lanes: Lane,
    keys: jax.Array,
    steps: int,
    at: At,
    start: int = 0,
    first: int = 0,
) -> TrainState:
    """Runs the steps from `start` up to `steps` of this phase; `state` is donated.

    `keys` (lanes,) order the examples. `first` is where in that order the phase begins: a network
    that is rewound to step k sees again what it saw from step k on.
    """
    return training.advance(
        p.chunk,
        state,
        p.train,
        keys,
        lanes,
        batch_size=p.batch_size,
        chunk_steps=p.chunk_steps,
        start=start,
        stop=steps,
        at=at,
        first=first,
    )
