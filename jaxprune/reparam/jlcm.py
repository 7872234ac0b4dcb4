"""JLCM: the codes of a codebook learn beside its values, one code further at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam import grid
from jaxprune.reparam.k_means import centers_of, check_bits, check_rounds, from_rows, in_rows
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import map_scored


class LearnedCodes(NamedTuple):
    """What `jlcm` trains.

    Attributes:
      weights: the params. Leaves with a codebook have no gradient: they say which weights are 0.
      values: float32, the shape of the codebooks and one more axis of 2^bits values; None where a
        leaf has no codebook.
      positions: float32 like the weights, in [0, 2^bits - 1]: the nearest whole number is the code,
        a place in the ascending values. None where a leaf has no codebook.
    """

    weights: Params
    values: Any
    positions: Any


def jlcm(
    bits: int = 4,
    axes: grid.Axes = (),
    rounds: int = 50,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """Each weight is one of 2^bits values of its codebook; the values and the codes learn.

        forward    w = c[round(t)],  c the ascending values
        backward   dw/dt = (c[i + 1] - c[i - 1]) / 2,  i = round(t); at the ends of the codebook the
                   distance of the last two values, and 0 for a step beyond the end

    The authors move a code to a neighbor and not to extreme values. Their gradient is not used
    here: the slope by the two neighbors is our choice. A position should move by at most 1 a step:
    `optax.clip(1.0)`, last in the optimizer of the positions. They train block by block on the
    error of a block's outputs; any loss will do. They also reorder neurons so that similar outputs
    share a codebook: here `axes` says which weights do.

    init takes the values of `codebook`, and positions between them, so that the nearest code is
    first. A pruned weight is exactly 0, and has no code. Masks of `sparsify` are of `weights`;
    leave the others out, `matching(exclude=("values/*", "positions/*"))`, and leave out weight
    decay.

    Args:
      bits: of each weight, 1 to 8.
      axes: which weights share a codebook, as in `fake_quantization`.
      rounds: of k-means.
      prunable: which leaves have codebooks; all others are used as they are.

    Raises:
      TypeError: for a leaf of integers, or if `apply` gets another tree than `init` makes.
      ValueError: for numbers that can't be, if no leaf is chosen, or a leaf has no such axis.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> two_bits = jp.reparam.jlcm(2)
    >>> learned = two_bits.init({'kernel': jnp.array([[-1.], [0.5], [1.], [0.], [2.]])})
    >>> learned = learned._replace(values={'kernel': jnp.array([[[-1., .5, 1., 2.]]])})
    >>> positions = {'kernel': jnp.array([[0.], [1.2], [1.7], [0.], [3.]])}
    >>> learned = learned._replace(positions=positions)
    >>> two_bits.apply(learned)['kernel'].ravel()
    Array([-1. ,  0.5,  1. ,  0. ,  2. ], dtype=float32)
    >>> slope = jax.grad(lambda learned: two_bits.apply(learned)['kernel'].sum())(learned)
    >>> slope.positions['kernel'].ravel()
    Array([0.  , 1.  , 0.75, 0.  , 1.  ], dtype=float32)

    Reference: Yvinec et al., 2024, Network Memory Footprint Compression Through Jointly Learnable
    Codebooks and Mappings.
    """
    check_bits("jlcm", bits)
    check_rounds("jlcm", rounds)

    def init(params: Params) -> LearnedCodes:
        shapes = grid.shared("jlcm", params, axes, prunable)
        leaves = grid.leaves_of(params, shapes)

        first = lambda shape, w: centers_of(w, shape.shape, 2**bits, rounds)
        values = map_scored(first, shapes, leaves)
        return LearnedCodes(params, values, map_scored(_between, values, leaves))

    def used(value: jax.Array, w: jax.Array, position: jax.Array) -> jax.Array:
        x = _values_at(value, position)
        return jnp.where(jax.lax.stop_gradient(w) != 0, x, 0).astype(w.dtype)

    def apply(learned: LearnedCodes, *, key: Any = None, step: Any = None) -> Params:
        weights, values, positions = check_learned("jlcm", LearnedCodes, learned)
        leaves = grid.leaves_of(weights, values)
        return merged(weights, map_scored(used, values, leaves, positions))

    return Reparameterization(init, apply)


@jax.jit
def _between(values: jax.Array, w: jax.Array) -> jax.Array:
    """The positions of weights between the values (*shape, k): the nearest value is the code."""
    shape, table = values.shape[:-1], values.reshape(-1, values.shape[-1])
    numbers = jnp.arange(values.shape[-1], dtype=jnp.float32)
    rows = in_rows(w.astype(jnp.float32), shape)
    found = jax.vmap(lambda row, value: jnp.interp(row, value, numbers))(rows, table)
    return from_rows(found, shape, w.shape)


@jax.jit
def _values_at(values: jax.Array, positions: jax.Array) -> jax.Array:
    """The values (*shape, k) at positions, like `positions`."""
    shape, table = values.shape[:-1], jnp.sort(values.reshape(-1, values.shape[-1]))
    picked = jax.vmap(_picked)(table, in_rows(positions, shape))
    return from_rows(picked, shape, positions.shape)


def places(positions: jax.Array, k: int) -> jax.Array:
    """The code of each position, int32: the nearest of 0 to k - 1."""
    return jnp.clip(jnp.round(positions), 0, k - 1).astype(jnp.int32)


@jax.custom_vjp
def _picked(values: jax.Array, positions: jax.Array) -> jax.Array:
    """`values[round(positions)]`, whose gradient moves positions to a neighbor."""
    return values[places(positions, len(values))]


def _forward(values: jax.Array, positions: jax.Array) -> Any:
    return _picked(values, positions), (values, positions)


def _backward(inputs: Any, g: jax.Array) -> Any:
    values, positions = inputs
    last, code = len(values) - 1, places(positions, len(values))
    slope = g * jnp.gradient(values)[code]
    beyond = ((positions <= 0) & (slope > 0)) | ((positions >= last) & (slope < 0))
    return jax.ops.segment_sum(g, code, len(values)), jnp.where(beyond, 0, slope)


_picked.defvjp(_forward, _backward)
