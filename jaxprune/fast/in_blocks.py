"""`in_blocks`: a mask transform of single weights, made one of blocks of weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, MaskTransform, Params, copied, is_known
from jaxprune.fast.block_product.blocks import split
from jaxprune.methods.combine import check_transform, where_due, with_masks, without_masks
from jaxprune.prunable.layers import folded
from jaxprune.prunable.layout import (
    Kernel,
    Layout,
    as_matrix,
    axes_of,
    from_matrix,
    matrix_shape,
    named_layout,
)
from jaxprune.prunable.rules import check_any, kernels, matching
from jaxprune.sharding import automatic, explicit_sharding, sharded_like
from jaxprune.trees import map_named, named_leaves, present_leaves


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layouts:
    """The inputs and outputs of each prunable leaf, by name; no array."""

    by_name: tuple[tuple[str, Layout], ...]


class InBlocksState(NamedTuple):
    """State of `in_blocks`.

    Attributes:
      masks: of the weights.
      rest: of its transform's state, what is left without masks.
      layouts: static; the axes of each kernel that are inputs, and its outputs.
    """

    masks: Masks
    rest: Any
    layouts: Layouts


def by_outputs(params: Params) -> Params:
    """The `prunable` of a transform that `in_blocks` takes: balanced over blocks of outputs.

    Each row of blocks, those that make one block of outputs, is a layer. With `uniform` all of them
    keep the same number of blocks.
    """
    return matching("*", stacked={"*": 0})(params)


def in_blocks(
    h: int,
    w: int,
    transform: MaskTransform,
    prunable: Callable[[Params], Params] = kernels,
) -> MaskTransform:
    """A mask transform of blocks of `h` inputs x `w` outputs, from any transform of weights.

    The transform sees, in place of each kernel (in, out), an array (blocks of outputs, blocks of
    inputs): the largest |w| of each block, and in place of the gradient its largest |g|. So GMP,
    SET, RigL and static masks need no second version:

        rigl = jp.rigl(key, 0.9, 0.5, jp.uniform, jp.fast.by_outputs)
        masks = jp.fast.in_blocks(32, 32, jp.every(100, rigl))
        tx = jp.sparsify(optax.adam(1e-3), masks)

    With `by_outputs` and `uniform` the pattern is balanced, as `block(h, w, balanced=True)`.
    Methods that move masks move `floor(fraction * kept)` blocks of each row: none where a row keeps
    fewer than 1 / fraction. `block_training` trains the kept blocks alone, with the same masks. Put
    `in_blocks` around `every`, not inside: then `block_training` knows the cadence.

    Args:
      h, w: positive integers. Where they do not divide an axis, the last blocks are smaller.
      transform: its `prunable` chooses among the arrays of blocks: `by_outputs`, or
        `matching('*')` for blocks that are not balanced.
      prunable: `params -> params` with None in place of what is never pruned.

    Raises:
      ValueError: if h or w is no positive integer; (in init) if a prunable leaf is no matrix, or a
        layer of a stack.
      TypeError: if `transform` is no mask transform.

    Reference: Narang et al., 2017, Block-Sparse Recurrent Neural Networks.
    """
    if not (isinstance(h, int) and isinstance(w, int) and h >= 1 and w >= 1):
        raise ValueError(f"in_blocks(h, w, ...) needs positive integers; got {h!r} and {w!r}.")
    check_transform("in_blocks", transform)
    init = _Init(h, w, transform, prunable)

    def update(state: InBlocksState, params: Params, *, step: Any, **context: Any) -> Any:
        def updated() -> InBlocksState:
            pooled = dict(context)
            if pooled.get("grads") is not None:
                pooled["grads"] = init.pooled(state.layouts, pooled["grads"])
            weights = init.pooled(state.layouts, params)
            new = transform.update(init.inner(state), weights, step=step, **pooled)
            return init.state(new, state.masks, state.layouts)

        if transform.due is None:
            return updated()
        time = {"step": step, "at_end": context.get("at_end", False)}
        return where_due(transform.due(init.inner(state), **time), updated, state)

    def due(state: InBlocksState, **time: Any) -> Any:
        return transform.due(init.inner(state), **time)  # type: ignore[misc]

    made = MaskTransform(init, update, None if transform.due is None else due)
    init.update = update
    return made


class _Init:
    """The `init` of `in_blocks`; `block_training` finds the blocks and the transform here."""

    update: Any = None

    def __init__(self, h: int, w: int, transform: MaskTransform, prunable: Any):
        self.h, self.w, self.transform, self.prunable = h, w, transform, prunable

    def __call__(self, params: Params) -> InBlocksState:
        chosen, layouts = self.chosen(params)
        return copied(self.state(self.begin(layouts, params), chosen, layouts))

    def begin(self, layouts: Layouts, params: Params) -> Any:
        """The first state of the transform of blocks."""
        try:
            return self.transform.init(self.pooled(layouts, params))
        except ValueError as error:
            error.add_note(
                "in_blocks: its transform sees blocks, an array (blocks of outputs, blocks of "
                "inputs) in place of each kernel. Where it says weights, these are blocks; "
                "'kernel/0' are those that make the first block of outputs. Masks of weights "
                "become masks of blocks by jp.fast.block_masks(masks, h, w)."
            )
            raise

    def chosen(self, params: Params) -> tuple[Params, Layouts]:
        """The prunable kernels and their layouts; ValueError if one of them has other axes."""
        chosen = self.prunable(params)
        check_any(chosen, params)
        alone = {leaf_name for leaf_name, _ in named_leaves(params)}
        for leaf_name, _ in present_leaves(chosen):
            if leaf_name not in alone:
                raise ValueError(
                    f"in_blocks takes matrices (in, out); '{leaf_name}' is a layer of a stack, as "
                    "nn.scan makes it. Leave the stack out: prunable=jp.matching(exclude=...)."
                )
        nodes = jax.tree.leaves(chosen, is_leaf=lambda node: isinstance(node, Kernel))
        names = [leaf_name for leaf_name, _ in present_leaves(chosen)]
        layouts = [(n, _layout(n, node)) for n, node in zip(names, nodes, strict=True)]
        return folded(chosen), Layouts(tuple(layouts))

    def pooled(self, layouts: Layouts, params: Params) -> dict[str, jax.Array]:
        """The largest |w| of each block of the kernels that have a layout."""
        leaves, found = dict(named_leaves(params)), {}
        for name, layout in layouts.by_name:
            of = lambda x, layout=layout: largest(as_matrix(x, layout), self.h, self.w)
            found[name] = _on_all_devices(of, leaves[name])
        return found

    def inner(self, state: InBlocksState) -> Any:
        """The state of the transform of blocks, whose masks are those of the blocks."""
        masks, found = dict(named_leaves(state.masks)), {}
        for name, layout in state.layouts.by_name:
            of = lambda x, layout=layout: as_matrix(x, layout)[:: self.h, :: self.w].T
            found[name] = _on_all_devices(of, masks[name])
        return with_masks(state.rest, found)

    def state(self, inner: Any, leaves: Any, layouts: Layouts) -> InBlocksState:
        """The state of the weights, like `leaves`, from the state of the blocks."""
        of_leaf = dict(layouts.by_name)

        def of_weights(name: str, leaf: Any) -> jax.Array:
            mask = lambda blocks: of_blocks(blocks, self.h, self.w, leaf.shape, of_leaf[name])
            return sharded_like(automatic(mask, leaf)(inner.masks[name]), leaf)

        return InBlocksState(map_named(of_weights, leaves), without_masks(inner), layouts)


def _layout(leaf_name: str, leaf: Any) -> Layout:
    """The layout of a prunable leaf, as it was given or as its name and shape tell."""
    shape = leaf.shape
    rank = len(shape)
    if isinstance(leaf, Kernel):
        layout = leaf.layout
    else:
        layout = Layout(0, 1) if rank == 2 else named_layout(leaf_name, shape)
    inputs, outputs = (axes_of(axes, rank) for axes in (layout.inputs, layout.outputs))
    if layout.why or not inputs or not outputs or len(inputs) + len(outputs) != rank:
        why = layout.why or "some axes are neither inputs nor outputs"
        raise ValueError(
            f"in_blocks takes kernels whose axes are inputs and outputs; '{leaf_name}' has shape "
            f"{tuple(shape)}: {why}. Leave it out: prunable=jp.matching(exclude=...). Or say what "
            f"its axes are: jp.matching(layouts={{{leaf_name!r}: jp.Layout(inputs=..., "
            "outputs=...)})."
        )
    return Layout(tuple(sorted(inputs)), tuple(sorted(outputs)))


def block_masks(masks: Masks, h: int, w: int) -> dict[str, jax.Array]:
    """Masks of weights as masks of the blocks that `in_blocks` names, to train under them:

        masks = jp.select(jp.magnitude(jp.kernels(params)), jp.uniform, 0.9, jp.block(32, 32))
        fixed = jp.fixed(jp.fast.block_masks(masks, 32, 32))
        training = jp.fast.block_training(loss, optimizer, jp.fast.in_blocks(32, 32, fixed))

    Args:
      masks: bool, known; None where never pruned: leave these leaves out of `in_blocks` too.
      h, w: as in `in_blocks`.

    Returns:
      By the name of the leaf bool (blocks of outputs, blocks of inputs).

    Raises:
      ValueError: if a mask keeps a block in part, is traced, or is no matrix.
    """
    found = {}
    for name, mask in present_leaves(masks):
        if not is_known(mask):
            raise ValueError(
                f"block_masks: the mask of '{name}' is traced. Call it outside of jit."
            )
        blocks = split(as_matrix(mask, _layout(name, mask)), h, w).astype(bool)
        kept = blocks.any((1, 3)).T
        n = int((np.asarray(of_blocks(kept, h, w, mask.shape, _layout(name, mask))) & ~mask).sum())
        if n:
            raise ValueError(
                f"block_masks: '{name}' is no mask of blocks of {h} x {w}: {n:,} weights are "
                "pruned in blocks that it keeps in part. Make it by the pattern jp.block(h, w), "
                "or give the h and w that it was made with."
            )
        found[name] = kept
    return found


def _on_all_devices(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`f(x)`, whole on every device where axes are explicit: few operations split such an axis."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return f(x)
    whole = jax.NamedSharding(sharding.mesh, jax.P())
    return jax.sharding.auto_axes(f, out_sharding=whole)(x)


def largest(x: jax.Array, h: int, w: int) -> jax.Array:
    """The largest |x| of each block of a kernel: (blocks of outputs, blocks of inputs)."""
    return jnp.abs(split(x, h, w)).max((1, 3)).T


def of_blocks(mask: jax.Array, h: int, w: int, shape: tuple[int, ...], layout: Layout) -> jax.Array:
    """The mask of a leaf, from a mask of the blocks of its matrix."""
    rows, columns = matrix_shape(layout, shape)
    matrix = jnp.repeat(jnp.repeat(mask.T, h, 0), w, 1)[:rows, :columns]
    return from_matrix(matrix, layout, shape)


def made_by_in_blocks(what: str, transform: MaskTransform) -> _Init:
    """The blocks of a transform of `in_blocks`; ValueError for any other."""
    init = transform.init
    if not isinstance(init, _Init) or init.update is not transform.update:
        raise ValueError(
            f"{what} takes a transform of in_blocks, with every inside: "
            "jp.fast.in_blocks(32, 32, jp.every(100, transform))."
        )
    return init


def n_blocks(size: int, of: int) -> int:
    """The number of blocks along an axis, the last one smaller if need be."""
    return math.ceil(size / of)
