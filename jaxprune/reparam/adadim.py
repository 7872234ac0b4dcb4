"""AdaDim: for each leaf, grids of outputs or grids of inputs, whichever has the smaller error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam import grid
from jaxprune.reparam.fake_quantize import on_grid
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import is_none, map_scored, with_leaves


class ChosenGrids(NamedTuple):
    """What `adadim` trains.

    Attributes:
      weights: the params.
      choice: float32 () for each leaf, a whole number: which of the axes its grids are along. It
        has no gradient; None where a leaf is not quantized.
    """

    weights: Params
    choice: Any


def adadim(
    outputs: Callable[[Params], Any] | None = None,
    bits: int = 4,
    axes: Sequence[grid.Axes] = (-1, -2),
    symmetric: bool = False,
    clip: float = 1.0,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """`fake_quantization`, whose grids are along outputs or along inputs, leaf by leaf.

        init    for each leaf, alone on its grids:  choice = argmin over axes of
                ||outputs(params) - outputs(params, this leaf on grids along the axes)||^2

    A few inputs with large weights then have grids to themselves, and an error that their inputs
    scale. Afterwards float weights learn as in `fake_quantization`, and the choice stays: leave
    weight decay out for it. A pruned weight stays exactly 0. All computation is in float, both
    grids are computed in every forward pass, and nothing is faster.

    `init` calls `outputs` once for the params, and once for each leaf and axes.

    Args:
      outputs: `params -> pytree of arrays`: of a block, or of the network, on calibration data.
        None: the weights themselves.
      bits: of each weight, 2 to 16.
      axes: what to choose from, each as `axes` of `fake_quantization`; the first of equal errors is
        chosen. -1: a grid for each output; -2: a grid for each input. The authors also cut rows of
        weights into groups.
      symmetric, clip, prunable: as in `fake_quantization`.

    Raises:
      TypeError: for a leaf of integers, or if `apply` gets another tree than `init` makes.
      ValueError: for numbers that can't be, if no leaf is chosen, or a leaf has no such axis.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'kernel': jnp.array([[.1, -.2], [8., 6.]])}
    >>> x = jnp.array([[1., .01]])  # the second input has large weights
    >>> method = jp.reparam.adadim(lambda params: x @ params['kernel'], bits=2)
    >>> learned = method.init(params)
    >>> learned.choice['kernel']  # -2, inputs
    Array(1., dtype=float32)
    >>> print((method.apply(learned)['kernel'] * 10).round())
    [[ 1. -2.]
     [80. 53.]]

    Reference: Heo et al., 2024, Rethinking Channel Dimensions to Isolate Outliers for Low-bit
    Weight Quantization of Large Language Models.
    """
    used = jax.jit(on_grid("adadim", bits, symmetric, clip))
    if isinstance(axes, int) or not axes:
        raise ValueError(
            f"adadim: axes is a sequence to choose from, such as (-1, -2); got {axes}."
        )

    def shapes_of(params: Params) -> list[Any]:
        return [grid.shared("adadim", params, each, prunable) for each in axes]

    def init(params: Params) -> ChosenGrids:
        shapes = shapes_of(params)
        leaves = grid.leaves_of(params, shapes[0])
        flat = jax.tree.leaves(leaves, is_leaf=is_none)
        on_grids = [
            jax.tree.leaves(map_scored(used, each, leaves), is_leaf=is_none) for each in shapes
        ]
        wanted = leaves if outputs is None else outputs(params)

        def error(place: int, x: jax.Array) -> jax.Array:
            """Of the outputs, where the leaf at `place` is `x`."""
            part = with_leaves(leaves, [*flat[:place], x, *flat[place + 1 :]])
            got = part if outputs is None else outputs(merged(params, part))
            return sum(map(_squares, jax.tree.leaves(got), jax.tree.leaves(wanted)), jnp.zeros(()))

        def chosen(place: int) -> jax.Array | None:
            if flat[place] is None:
                return None
            errors = jnp.stack([error(place, candidates[place]) for candidates in on_grids])
            return jnp.argmin(errors).astype(jnp.float32)

        return ChosenGrids(params, with_leaves(leaves, map(chosen, range(len(flat)))))

    def apply(learned: ChosenGrids, *, key: Any = None, step: Any = None) -> Params:
        weights, choice = check_learned("adadim", ChosenGrids, learned)
        shapes = shapes_of(weights)

        def either(number: jax.Array, w: jax.Array, *each: jax.Array) -> jax.Array:
            candidates = [used(shape, w) for shape in each]
            index = jnp.clip(jnp.round(jax.lax.stop_gradient(number)), 0, len(axes) - 1)
            return jax.lax.select_n(index.astype(jnp.int32), *candidates)

        leaves = grid.leaves_of(weights, choice)
        return merged(weights, map_scored(either, choice, leaves, *shapes))

    return Reparameterization(init, apply)


def _squares(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum((a.astype(jnp.float32) - b.astype(jnp.float32)) ** 2)
