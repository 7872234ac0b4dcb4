"""Arms that train the kept blocks of their kernels alone, by `jp.fast.block_training`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

import jaxprune as jp
from jaxprune.trees import named_leaves
from recipes.common import lanes, models
from recipes.common.data import Split
from recipes.common.lanes import State

Shapes = dict[str, tuple[int, ...]]


class InBlocks(NamedTuple):
    """Masks of blocks. The params of the state are blocks, its optimizer state a `BlockState`.

    Attributes:
      masks: an arm's key -> a transform of `in_blocks`.
      slots: (shapes of the kernels (in, out), step) -> blocks for each block of outputs, by leaf;
        what the masks need after so many steps, and never more than before. The shapes of a
        state follow from its step, so that a checkpoint can be restored.
    """

    masks: Callable[[jax.Array], jp.MaskTransform]
    slots: Callable[[Shapes, int], dict[str, int]]


def training(
    module: nn.Module, optimizer: optax.GradientTransformation, masks: jp.MaskTransform
) -> jp.fast.BlockTraining:
    """The training of a classifier."""
    return jp.fast.block_training(models.classification(module), optimizer, masks, has_aux=True)


def program(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    blocks: InBlocks,
    train: Split,
    batch_size: int,
    chunk_steps: int,
) -> lanes.Program:
    """The program of an arm in blocks; a lane has a key `own`."""
    of_lane = lambda lane: training(module, optimizer, blocks.masks(lane.own))

    def step(state: State, images: jax.Array, labels: jax.Array, lane: Any) -> Any:
        now = _joined(state)
        new, (loss, (accuracy, batch_stats)) = of_lane(lane).step(
            now, state.batch_stats, images, labels
        )
        return split(new, batch_stats), {"loss": loss, "accuracy": accuracy}

    def init(lane: Any, params: Any) -> Any:
        shapes = {name: leaf.shape for name, leaf in named_leaves(params) if leaf.ndim == 2}
        return of_lane(lane).init(params, blocks.slots(shapes, 0))

    data = jax.device_put(train)
    init = jax.jit(jax.vmap(init))

    def between(step: int, state: State) -> State:
        small = cut(module, blocks, step, state)
        slots = jp.fast.slots_of(_joined(small))
        for name, kept in state.opt_state.mask_state.masks.items():
            if (most := int(kept.sum(-1).max())) > slots[name]:
                raise RuntimeError(f"'{name}' keeps {most} blocks, and has {slots[name]} slots")
        return small

    return lanes.Program(module, init, step, data, batch_size, chunk_steps, {}, between)


def cut(module: nn.Module, blocks: InBlocks, step: int, state: State) -> State:
    """A stack of states in the slots of `step` steps; what lies in other slots is lost."""
    shapes = {name: place.shape for name, place in state.opt_state.places.items()}
    slots = blocks.slots(shapes, step)
    if slots == jp.fast.slots_of(_joined(state)):
        return state
    some = training(module, optax.identity(), blocks.masks(jax.random.key(0)))
    small = jax.jit(jax.vmap(lambda state: some.cut(state, slots)))(_joined(state))
    return split(small, state.batch_stats)


def split(state: jp.fast.BlockState, batch_stats: Any) -> State:
    """The state of a lane: the params apart from the rest."""
    return State(state.params, batch_stats, state._replace(params=()))


def _joined(state: State) -> jp.fast.BlockState:
    return state.opt_state._replace(params=state.params)


def network(module: nn.Module, blocks: InBlocks, state: State) -> tuple[Any, Any]:
    """(params, masks) with kernels (in, out), of one state or of a stack."""
    one, stack = _dense(module, blocks)
    return (stack if state.opt_state.step.ndim else one)(state)


@cache
def _dense(module: nn.Module, blocks: InBlocks) -> tuple[Any, Any]:
    """`network` of one state and of a stack, each compiled once."""
    some = training(module, optax.identity(), blocks.masks(jax.random.key(0)))
    dense = lambda state: (some.params(_joined(state)), some.masks(_joined(state)))
    return jax.jit(dense), jax.jit(jax.vmap(dense))
