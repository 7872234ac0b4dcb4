"""Blocks that move: the state of a training after its masks changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params, is_known
from jaxprune.fast.block_product.blocks import inputs_of, split
from jaxprune.fast.in_blocks import largest, n_blocks
from jaxprune.fast.state import BlockState, Places, map_blocks, with_leaves_of
from jaxprune.optimizer.moments import leaf_masks
from jaxprune.prunable.layout import as_matrix
from jaxprune.trees import map_named, named_leaves


def rewired(
    state: BlockState, slopes: dict[str, Any], grads: Params, transform: Any, h: int, w: int
) -> tuple[BlockState, Params]:
    """The state and the gradients after an update of the masks; new blocks start at zero."""
    leaves = dict(named_leaves(state.params))
    weights, steep = {}, {}
    for name, place in state.places.items():
        n = n_blocks(place.shape[0], h)
        empty = jnp.zeros((len(place.inputs), n), leaves[name].dtype)
        size = jnp.abs(leaves[name]).max((2, 3))
        weights[name] = jax.vmap(lambda row, i, x: row.at[i].set(x, mode="drop"))(
            empty, place.inputs, size
        )
        steep[name] = largest(as_matrix(slopes[name], place.layout), h, w)
    mask_state = transform.update(
        state.mask_state, weights, grads=steep, step=state.step, opt_state=state.inner_state
    )
    places, moves, new_grads = {}, {}, dict(named_leaves(grads))
    for name, place in state.places.items():
        kept = mask_state.masks[name]
        inputs = inputs_of(kept, place.inputs.shape[1])
        places[name] = replace(place, inputs=inputs)
        moves[name] = _Move(leaves[name].shape, _sources(place.inputs, inputs, kept.shape[1]))
        of_outputs = split(as_matrix(slopes[name], place.layout), h, w).transpose(2, 0, 1, 3)
        take = lambda own, i: own.at[i].get(mode="fill", fill_value=0)
        new_grads[name] = jax.vmap(take)(of_outputs, inputs)
    tree = map_named(lambda name, _: moves.get(name), state.params)
    move = lambda move, leaf: leaf if move is None else move(leaf)
    params = map_blocks(lambda values, m: m(values), state.params, moves)
    held, treedef = jax.tree.flatten(state.inner_state)
    of_leaves = leaf_masks(state.inner_state, tree, state.params)
    inner_state = jax.tree.unflatten(treedef, list(map(move, of_leaves, held)))
    new = state._replace(
        params=params, places=places, mask_state=mask_state, inner_state=inner_state
    )
    return new, with_leaves_of(grads, new_grads)


class _Move:
    """Values in slots, as they lie after the masks moved."""

    def __init__(self, shape: tuple[int, ...], sources: jax.Array):
        self.shape, self.sources = shape, sources

    def __call__(self, values: jax.Array) -> jax.Array:
        take = lambda own, i: own.at[i].get(mode="fill", fill_value=0)
        return jax.vmap(take)(values, self.sources)


def _sources(old: jax.Array, new: jax.Array, n: int) -> jax.Array:
    """For each new slot the old slot of the same block; one past the last for a new block."""
    slots = old.shape[1]

    def row(old: jax.Array, new: jax.Array) -> jax.Array:
        slot_of = jnp.full(n, slots, jnp.int32).at[old].set(jnp.arange(slots), mode="drop")
        return slot_of.at[new].get(mode="fill", fill_value=slots)

    return jax.vmap(row)(old, new)


def filled(params: Params, places: dict[str, Places], h: int) -> Params:
    """`params` with zeros in empty slots, whatever the optimizer wrote there."""

    def values(x: jax.Array, place: Places) -> jax.Array:
        used = place.inputs < n_blocks(place.shape[0], h)
        return jnp.where(used[..., None, None], x, jnp.zeros((), x.dtype))

    return map_blocks(values, params, places)


def cut_slots(state: BlockState, slots: dict[str, int] | None = None) -> BlockState:
    """The state without slots that are empty for every block of outputs, or with `slots` of them.

    Args:
      slots: by leaf, where the masks are traced or a schedule says how many are left.

    Raises:
      ValueError: if the masks are traced and there are no `slots`, or if known masks keep more.
    """
    keep = {}
    for name, place in state.places.items():
        kept = state.mask_state.masks[name]
        if slots is not None and name not in slots:
            raise ValueError(f"cut: slots has no '{name}'; wanted {', '.join(state.places)}.")
        if is_known(kept):
            most = max(int(kept.sum(-1).max()), 1)
            wanted = most if slots is None else slots[name]
            if wanted < most:
                raise ValueError(
                    f"cut: a block of outputs of '{name}' keeps {most} blocks, more than slots "
                    f"{wanted}. Cut later, or to {most}."
                )
        elif slots is None:
            raise ValueError(
                f"cut: the number of blocks that '{name}' keeps is traced. Call it outside of jit, "
                "or say how many slots are left: training.cut(state, slots={...}), by leaf."
            )
        else:
            wanted = slots[name]
        keep[name] = min(wanted, place.inputs.shape[-1])
    shapes = {name: x.shape for name, x in named_leaves(state.params) if name in keep}
    moves = {name: _Cut(shapes[name], n) for name, n in keep.items()}
    tree = map_named(lambda name, _: moves.get(name), state.params)
    held, treedef = jax.tree.flatten(state.inner_state)
    of_leaves = leaf_masks(state.inner_state, tree, state.params)
    cut = [leaf if m is None else m(leaf) for m, leaf in zip(of_leaves, held, strict=True)]
    return state._replace(
        params=map_blocks(lambda values, m: m(values), state.params, moves),
        places={
            name: replace(place, inputs=place.inputs[:, : keep[name]])
            for name, place in state.places.items()
        },
        inner_state=jax.tree.unflatten(treedef, cut),
    )


class _Cut:
    """Values in the first slots only."""

    def __init__(self, shape: tuple[int, ...], slots: int):
        self.shape, self.slots = shape, slots

    def __call__(self, values: jax.Array) -> jax.Array:
        return values[:, : self.slots]
