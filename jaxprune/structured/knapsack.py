"""The blocks whose removal changes the outputs least, for what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params, arguments
from jaxprune.coupling.structure import Structure
from jaxprune.structured.check import check_all
from jaxprune.structured.removal import weights_of
from jaxprune.trees import map_named


def output_losses(
    structure: Structure, params: Params, blocks: Sequence[str], batches: Iterable[Any]
) -> dict[str, float]:
    """By block the mean squared change of the outputs without it: its leaves are zero.

        losses = output_losses(structure, params, removable_blocks(structure, blocks), batches)
        gone = knapsack(losses, sizes, least)
        small = compact(structure, params, remove_blocks(structure, gone))

    Args:
      structure: of `analyze`; its function is evaluated, as it was read.
      params: all the params that were analyzed.
      blocks: names of modules, as in `remove_blocks`.
      batches: inputs of the function; a tuple is several arguments. Batches count alike.

    Returns:
      {block: loss}, the mean over all entries of all floating outputs.

    Raises:
      ValueError: without a batch, for a block that is not there, for params that do not fit, and
        for outputs that are nan or inf; it names the block.

    Reference: Zhang et al., 2024, LAPTOP-Diff: Layer Pruning and Normalized Distillation for
    Compressing Diffusion Models.
    """
    outputs = outputs_without("output_losses", structure, params, blocks)
    sums = {block: 0.0 for block in outputs if block is not None}
    count = 0
    for inputs in arguments("output_losses", batches):
        count += 1
        dense = outputs[None](inputs)
        entries = sum(x.size for x in dense)
        for block in sums:
            found = outputs[block](inputs)
            change = sum(float(jnp.square(a - b).sum()) for a, b in zip(found, dense, strict=True))
            sums[block] += change / entries
    for block, total in sums.items():
        if not math.isfinite(total):
            raise ValueError(
                f"output_losses: the outputs change by nan or inf without block '{block}'. Look at "
                "the batches, and at the outputs of the network with all blocks."
            )
    return {block: total / count for block, total in sums.items()}


def outputs_without(
    what: str, structure: Structure, params: Params, blocks: Sequence[str]
) -> dict[str | None, Callable[[tuple[Any, ...]], list[jax.Array]]]:
    """By block `inputs -> the floating outputs without it`, float32; at None with all blocks.

    All of them are one compiled program.
    """
    check_all(what, structure, params)

    @jax.jit
    def outputs(params: Params, inputs: tuple[Any, ...]) -> list[jax.Array]:
        found = jax.tree.leaves(structure.fn(params, *inputs))
        return [x.astype(jnp.float32) for x in found if jnp.issubdtype(x.dtype, jnp.floating)]

    def without(paths: Collection[str]) -> Callable[[tuple[Any, ...]], list[jax.Array]]:
        zeros = lambda path, x: jnp.zeros_like(x) if path in paths else x
        return lambda inputs: outputs(map_named(zeros, params), inputs)

    leaves = weights_of(structure, blocks)
    return {None: without(()), **{block: without(paths) for block, paths in leaves.items()}}


def knapsack(losses: Mapping[str, float], sizes: Mapping[str, float], least: float) -> list[str]:
    """The blocks to remove: the least sum of losses of all sets whose sizes add up to `least`.

    Exact, by dynamic programming over the sets that no other set beats in both size and loss. It is
    an assumption that the losses of blocks add up: `output_losses` measures each block alone.

    Args:
      losses: what the removal of each block costs, not negative, such as of `output_losses`.
      sizes: what the removal of each block saves, positive: weights, FLOPs or seconds.
      least: how much is saved at least.

    Returns:
      names for `remove_blocks`, in the order of `losses`.

    Raises:
      ValueError: if the names of losses and sizes differ, for a loss or a size that can't be, and
        if all blocks together are smaller than `least`.

    Reference: Zhang et al., 2024, LAPTOP-Diff: Layer Pruning and Normalized Distillation for
    Compressing Diffusion Models.

    >>> knapsack({'a': .1, 'b': .3, 'c': .2, 'd': .5}, {'a': 2, 'b': 5, 'c': 3, 'd': 4}, 7)
    ['a', 'b']
    """
    if set(losses) != set(sizes):
        odd = sorted(set(losses) ^ set(sizes))
        raise ValueError(
            f"knapsack: losses and sizes are of the same blocks; {odd} is in one only."
        )
    for name, loss in losses.items():
        if (
            not (math.isfinite(loss) and loss >= 0 and math.isfinite(sizes[name]))
            or sizes[name] <= 0
        ):
            raise ValueError(
                f"knapsack: a loss is finite and not negative, and a size is positive; block "
                f"'{name}' has loss {loss} and size {sizes[name]}."
            )
    total = sum(sizes.values())
    if not least <= total:
        raise ValueError(
            f"knapsack: all {len(sizes)} blocks together have size {total:g}, and at least "
            f"{least:g} is to go. Ask for less."
        )
    # (loss, size, blocks), none of which is beaten in both
    sets: list[tuple[float, float, tuple[str, ...]]] = [(0.0, 0.0, ())]
    for name, loss in losses.items():
        more = [(a + loss, b + sizes[name], (*c, name)) for a, b, c in sets if b < least]
        best = -math.inf
        front = []
        for one in sorted(sets + more, key=lambda x: (x[0], -x[1])):
            if one[1] > best:
                front.append(one)
                best = one[1]
            if best >= least:
                break
        sets = front
    return list(sets[-1][2])
