"""Training of the kept blocks alone: forward, backward and optimizer cost what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Masks, MaskTransform, Params, copied, is_known
from jaxprune.fast.block_product.blocks import Blocks, to_blocks, to_kernel
from jaxprune.fast.block_product.by_share import by_share
from jaxprune.fast.in_blocks import made_by_in_blocks, of_blocks
from jaxprune.fast.program import Held, Read, in_words, run
from jaxprune.fast.program import product as of_program
from jaxprune.fast.rewiring import cut_slots, filled, rewired
from jaxprune.fast.state import BlockState, Places, map_blocks, with_leaves_of
from jaxprune.methods.combine import where_due
from jaxprune.prunable.layout import as_matrix, from_matrix
from jaxprune.sharding import explicit_sharding
from jaxprune.trees import map_named, named_leaves


class BlockTraining(NamedTuple):
    """The functions of `block_training`.

    Attributes:
      init: `params -> BlockState`.
      step: `(state, *args) -> (state, value)`, `value` as the loss gives it; jit it.
      params: `state -> params`, kernels (in, out) with zeros.
      masks: `state -> masks`, bool, like the params; None where never pruned.
      cut: `state -> state` without slots that are empty for every block of outputs. Its shapes
        differ, so that the step compiles again. Call it outside of jit after pruning; or with
        `slots`, by leaf, where a schedule says how many are left.
    """

    init: Callable[..., BlockState]
    step: Callable[..., tuple[BlockState, Any]]
    params: Callable[[BlockState], Params]
    masks: Callable[[BlockState], Masks]
    cut: Callable[..., BlockState]


def block_training(
    loss: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    transform: MaskTransform,
    has_aux: bool = False,
    product: Callable[..., jax.Array] = by_share,
) -> BlockTraining:
    """Training with masks of blocks whose step costs what is kept: weights, moments, products.

    It has the masks and the losses of `sparsify(optimizer, transform)`, to rounding:

        training = block_training(loss, optax.adam(1e-3), in_blocks(32, 32, every(100, rigl)))
        state = training.init(params)
        step = jax.jit(training.step, donate_argnums=0)
        state, value = step(state, images, labels)

    The program of the loss is read, and its products with kernels in blocks become products of the
    blocks. Masks move without a new compilation. An update of the masks computes the gradient of
    all weights once; steps between updates do not.

    Each block of outputs has as many slots as the first masks need: a balanced pattern wastes none,
    and gradual pruning begins with all slots: dense steps, until `cut` removes empty slots.

    Args:
      loss: `(params, *args) -> loss`, or `(loss, aux)` with `has_aux`.
      optimizer: any optax optimizer; it sees blocks in place of kernels. One that factors a kernel
        or normalizes by its shape (adafactor, muon) does something else with blocks.
      transform: of `in_blocks`.
      has_aux: as in `jax.value_and_grad`.
      product: a form of `jaxprune.fast.block_product`, for traced indices. The default multiplies
        densely while more than 0.42 of the weights have a slot.

    Raises:
      ValueError: if `transform` is not of `in_blocks`; (in init) if the number of slots is traced
        and not given, or a kernel lies over explicit mesh axes; (in step) if the loss reads a
        kernel in blocks other than by x @ kernel: it names the line.
    """
    blocks = made_by_in_blocks("block_training", transform)
    h, w, masks_over_time = blocks.h, blocks.w, blocks.transform
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Params, slots: dict[str, int] | None = None) -> BlockState:
        """`slots` by leaf, where the masks are traced: those of another `init`, by `slots_of`."""
        _, found = blocks.chosen(params)
        mask_state = blocks.begin(found, params)
        leaves, places, layouts = dict(named_leaves(params)), {}, dict(found.by_name)
        for name, kept in mask_state.masks.items():
            if slots is None and not is_known(kept):
                raise ValueError(
                    f"block_training: the number of blocks that '{name}' keeps is traced. Give it: "
                    "training.init(params, slots=jp.fast.slots_of(training.init(one_params)))."
                )
            if slots is not None and name not in slots:
                raise ValueError(
                    f"block_training: slots has no '{name}'. Give those of slots_of(state): "
                    f"{', '.join(mask_state.masks)}."
                )
            _check_whole(name, leaves[name])
            layout, shape = layouts[name], leaves[name].shape
            kernel = as_matrix(leaves[name], layout)
            mask = as_matrix(of_blocks(kept, h, w, shape, layout), layout)
            made = to_blocks(kernel, mask, h, w, None if slots is None else slots[name])
            leaves[name] = made.values
            places[name] = Places(made.inputs, made.shape, shape, layout)
        values = with_leaves_of(params, leaves)
        step = jnp.zeros((), jnp.int32)
        return copied(BlockState(step, values, places, mask_state, optimizer.init(values)))

    def step(state: BlockState, *args: Any) -> tuple[BlockState, Any]:
        given = state.places
        for name, leaf in named_leaves(state.params):
            if name in given and leaf.shape[2:] != (h, w):
                size = " x ".join(map(str, leaf.shape[2:]))
                raise ValueError(
                    f"block_training: this state has blocks of {size} "
                    f"in '{name}', and the transform has {h} x {w}. Give a state of this training: "
                    "training.init(params)."
                )
        in_blocks = lambda values: run_in_blocks(loss, values, given, args, product)
        value, grads = jax.value_and_grad(in_blocks, has_aux=has_aux)(state.params)

        def moved() -> Any:
            scalar = (lambda p: loss(p, *args)[0]) if has_aux else (lambda p: loss(p, *args))
            slopes = dict(named_leaves(jax.grad(scalar)(dense(state))))
            return rewired(state, slopes, grads, masks_over_time, h, w)

        rest = state
        if masks_over_time.due is None:
            rest, grads = moved()
        else:
            due = masks_over_time.due(state.mask_state, step=state.step)
            rest, grads = where_due(due, moved, (rest, grads))
        update = partial(optimizer.update, value=value[0] if has_aux else value)
        updates, inner_state = update(grads, rest.inner_state, rest.params)
        params = filled(optax.apply_updates(rest.params, updates), rest.places, h)
        rest = rest._replace(step=state.step + 1, params=params, inner_state=inner_state)
        return rest, value

    def dense(state: BlockState) -> Params:
        def kernel(values: jax.Array, place: Places) -> jax.Array:
            matrix = to_kernel(Blocks(values, place.inputs, place.shape))
            return from_matrix(matrix, place.layout, place.leaf)

        return map_blocks(kernel, state.params, state.places)

    def masks(state: BlockState) -> Masks:
        of_weights = {
            name: of_blocks(mask, h, w, state.places[name].leaf, state.places[name].layout)
            for name, mask in state.mask_state.masks.items()
        }
        return map_named(lambda name, _: of_weights.get(name), state.params)

    return BlockTraining(init, step, dense, masks, cut_slots)


def _check_whole(name: str, leaf: jax.Array) -> None:
    sharding = explicit_sharding(leaf)
    if sharding is not None and any(sharding.spec):
        raise ValueError(
            f"block_training: '{name}' lies over explicit mesh axes, {sharding.spec}, and its "
            "blocks lie whole on every device. Give jax.device_put(kernel, NamedSharding(mesh, "
            "P())), or a mesh with AxisType.Auto."
        )


def slots_of(state: BlockState) -> dict[str, int]:
    """The number of slots of each block of outputs, by leaf."""
    return {name: place.inputs.shape[-1] for name, place in state.places.items()}


def run_in_blocks(
    fn: Callable[..., Any],
    params: Params,
    places: dict[str, Places],
    args: tuple[Any, ...],
    product: Callable[..., jax.Array] = by_share,
) -> Any:
    """`fn(params, *args)` of params with kernels in blocks, without making these dense.

    Raises:
      ValueError: if `fn` reads a kernel in blocks other than by x @ kernel; it names the line.
    """
    whole = lambda values, place: jax.ShapeDtypeStruct(place.leaf, values.dtype)
    jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(map_blocks(whole, params, places), *args)
    leaves = dict(named_leaves(params))

    def held(name: str, leaf: jax.Array) -> Any:
        place = places.get(name)
        if place is None:
            return leaf
        axes = tuple(range(len(place.leaf)))
        return Held(name, leaf.dtype, axes, Blocks(leaf, place.inputs, place.shape))

    operands = [held(name, leaf) for name, leaf in leaves.items() if leaf is not None]

    def multiply(read: Read, x: jax.Array) -> jax.Array:
        place = places[read.name]
        if read.layout != place.layout:
            raise ValueError(
                f"'{read.name}' is read {in_words(read)}, and its blocks have axes "
                f"{place.layout.inputs} as inputs and {place.layout.outputs} as outputs"
            )
        blocks: Blocks = read.kernel.form
        blocks = replace(blocks, values=blocks.values.astype(read.kernel.dtype))
        return of_program(read, x, lambda rows, **how: product(rows, blocks, **how))

    try:
        results = run(jaxpr, [*operands, *jax.tree.leaves(args)], multiply)
    except ValueError as error:
        if not str(error).startswith("'"):
            raise
        raise ValueError(
            f"block_training: {error}; a kernel in blocks is only multiplied, x @ kernel. Leave it "
            "out with in_blocks(..., prunable=jp.matching(exclude=...)); add a penalty of weights "
            "in the optimizer."
        ) from error
    return jax.tree.unflatten(jax.tree.structure(shape), results)
