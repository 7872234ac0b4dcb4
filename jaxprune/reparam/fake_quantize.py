"""An array on its uniform grid, with a gradient: the inputs of a quantized layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.reparam import grid


def fake_quantize(
    x: jax.Array,
    bits: int = 8,
    axes: grid.Axes = (),
    symmetric: bool = True,
    ends: tuple[Any, Any] | None = None,
    power_of_two: bool = False,
) -> jax.Array:
    """An array rounded to its uniform grid of 2^bits levels; gradients pass straight through.

    Call it in the network, on what a layer reads; `fake_quantization` is for the weights, and has
    the same grids, which always have a zero. Without `ends` the grid ends at the values that are
    there. Then what one example gives depends on the others of its batch. A network that is used
    needs `ends`: those of batches before, such as their running means. Entries beyond the ends are
    clipped, and have no gradient.

    Args:
      x: floats, of any shape.
      bits: of each entry, 2 to 16.
      axes: along these axes every entry has its grid, along the others all entries share one. ():
        one grid; 0: one for each example.
      symmetric: whether the grid is as long on both sides of zero. Take False after a ReLU: a
        symmetric grid has half of its levels below zero.
      ends: the lowest and the highest value; the grid is made to hold 0 as well. Numbers, or
        arrays of one entry for each grid, in the rank of `x`.
      power_of_two: as in `fake_quantization`.

    Returns:
      Like `x`.

    Raises:
      TypeError: for integers.
      ValueError: for numbers that can't be, or an axis that `x` does not have.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> relu = lambda x: jp.reparam.fake_quantize(x, 2, symmetric=False, ends=(0, 3))
    >>> x = jnp.array([0., 1., 2.2, 3.6])
    >>> relu(x), jax.grad(lambda x: relu(x).sum())(x)
    (Array([0., 1., 2., 3.], dtype=float32), Array([1., 1., 1., 0.], dtype=float32))

    Reference: Jacob et al., 2018, Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference.
    """
    used, x = on_grid("fake_quantize", bits, symmetric, 1.0, power_of_two), jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"fake_quantize: x is {x.dtype}, and only floats are quantized.")
    shape = grid.shared("fake_quantize", {"x": x}, axes, lambda tree: tree)["x"]
    return used(shape, x, ends)


def on_grid(
    what: str, bits: int, symmetric: bool, clip: float, power_of_two: bool = False
) -> Callable[..., jax.Array]:
    """`(ones of the shape of the grids, w) -> w on its grids`, with the gradient straight through.

    A third argument, (lowest, highest), takes the place of the least and the largest weight.

    Raises:
      ValueError: for numbers that can't be.
    """
    grid.check_bits(what, bits)
    if not 0 < clip <= 1:
        raise ValueError(f"{what}: clip is in (0, 1]; got {clip}.")

    def used(shape: jax.Array, w: jax.Array, ends: Any = None) -> jax.Array:
        still = jax.lax.stop_gradient(w).astype(jnp.float32)
        low, high = grid.ends_of(still, shape) if ends is None else ends
        if symmetric:
            top = 2 ** (bits - 1) - 1
            step = clip * (jnp.maximum(jnp.abs(low), jnp.abs(high)) / top)
            step = grid.power_of_two(step) if power_of_two else step
            lowest, highest = -top, top
        else:
            low, high = jnp.minimum(clip * low, 0), jnp.maximum(clip * high, 0)
            step = (high - low) / (2**bits - 1)
            step = grid.power_of_two(step) if power_of_two else step
            zero = grid.rounded(-low, step, 0, 2**bits - 1)
            lowest, highest = -zero, 2**bits - 1 - zero
        level = grid.rounded(still, step, lowest, highest)
        near = jnp.abs(still - step * level) <= 0.5001 * step  # where nothing is clipped
        return grid.through(w, (step * level).astype(w.dtype), near | (step == 0))

    return used
