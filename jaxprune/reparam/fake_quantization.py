"""Fake quantization: the network uses weights on a uniform grid, and float weights learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam import grid
from jaxprune.reparam.fake_quantize import on_grid
from jaxprune.reparam.reparameterization import Reparameterization, Size, check_learned, size_of
from jaxprune.trees import map_scored


class FloatWeights(NamedTuple):
    """What `fake_quantization` trains.

    Attributes:
      weights: the params.
    """

    weights: Params


def fake_quantization(
    bits: int = 8,
    axes: grid.Axes = (),
    symmetric: bool = True,
    clip: float = 1.0,
    power_of_two: bool = False,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """The network uses weights on a uniform grid of 2^bits levels; the float weights learn.

        symmetric    step = clip max|w| / (2^(bits - 1) - 1)
                     w -> step round(w / step)
        asymmetric   step = (clip max(w, 0) - clip min(w, 0)) / (2^bits - 1)
                     w -> step (round(w / step) + zero) - step zero,  zero = round(-min / step)

    The grid is made anew in every forward pass, of the weights that are then there. It always has
    a zero: a pruned weight stays exactly 0, whatever the grid, and `apply(init(masked params))`
    quantizes after masking. Gradients pass unchanged (straight through), but not to weights that
    are clipped. All computation is in float: this says what a quantized network computes, and makes
    nothing faster.

    `apply(init(params))` without training is quantization after training.

    Args:
      bits: of each weight, 2 to 16. A symmetric grid has one level less.
      axes: along these axes every entry has its grid, along the others all entries share one, as in
        `gates.logits`. (): one grid for each leaf; -1: for each output; -2: for each input.
      symmetric: whether the grid is as long on both sides of zero.
      clip: the grid ends at this part of the largest weight, in (0, 1].
      power_of_two: whether the step is the next larger power of two, as fixed-point numbers have
        it. Products of two such grids are fixed-point too.
      prunable: which leaves are quantized; all others are used as they are.

    Raises:
      TypeError: for a leaf of integers, or if `apply` gets another tree than `init` makes.
      ValueError: for numbers that can't be, if no leaf is chosen, or a leaf has no such axis.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> four_bits = jp.reparam.fake_quantization(4)
    >>> used = four_bits.apply(four_bits.init({'kernel': jnp.array([[-1.], [.3], [0.], [.7]])}))
    >>> (7 * used['kernel']).ravel()
    Array([-7.,  2.,  0.,  5.], dtype=float32)

    Reference: Jacob et al., 2018, Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference.
    """
    used = on_grid("fake_quantization", bits, symmetric, clip, power_of_two)

    def init(params: Params) -> FloatWeights:
        grid.shared("fake_quantization", params, axes, prunable)
        return FloatWeights(params)

    def apply(learned: FloatWeights, *, key: Any = None, step: Any = None) -> Params:
        (weights,) = check_learned("fake_quantization", FloatWeights, learned)
        shapes = grid.shared("fake_quantization", weights, axes, prunable)
        return merged(weights, map_scored(used, shapes, grid.leaves_of(weights, shapes)))

    return Reparameterization(init, apply)


def quantized_size(
    params: Params,
    bits: int,
    axes: grid.Axes = (),
    symmetric: bool = True,
    prunable: Callable[[Params], Params] = kernels,
) -> Size:
    """The size of params on the grids of `fake_quantization`: codes, steps and zeros.

    A step is a float32, and an asymmetric grid has a zero of `bits` bits. The leaves that are not
    quantized count in their dtypes. The masks of pruned weights are no part of it.

    Args:
      params: arrays, or their shapes.
      bits, axes, symmetric, prunable: as in `fake_quantization`.

    Raises:
      TypeError, ValueError: as `fake_quantization`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.reparam.quantized_size({'kernel': jnp.ones((8, 4)), 'bias': jnp.ones(4)}, 4, axes=-1)
    Size(numbers=40, bits=384)
    """
    grid.check_bits("quantized_size", bits)
    shapes = grid.shared("quantized_size", params, axes, prunable)
    leaves = grid.leaves_of(params, shapes)
    steps, everything, floats = size_of(shapes).numbers, size_of(params), size_of(leaves)
    codes, zeros = floats.numbers, 0 if symmetric else steps
    return Size(
        everything.numbers + steps + zeros,
        everything.bits - floats.bits + codes * bits + 32 * steps + zeros * bits,
    )
