"""LSQ: the step of each uniform grid is learned beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam import grid
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import map_scored


class LearnedSteps(NamedTuple):
    """What `lsq` trains.

    Attributes:
      weights: the params.
      steps: float32, of the rank of their weight and with one entry for each grid; None where a
        leaf is not quantized.
    """

    weights: Params
    steps: Any


def lsq(
    bits: int = 4,
    axes: grid.Axes = (),
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """The network uses s round(clip(w / s, -Q_N, Q_P)); the weights w and the steps s learn.

    Q_N = 2^(bits - 1) and Q_P = 2^(bits - 1) - 1. The step begins at 2 mean|w| / sqrt(Q_P), the
    mean over weights that are not zero. The gradient of a weight is 1 inside of the range and 0
    outside; the gradient of a step is round(w / s) - w / s inside, and -Q_N or Q_P outside, each
    times 1 / sqrt(n Q_P) for n weights that share it. A pruned weight stays exactly 0.

    Don't decay the steps: `prunable` of `optax.masked`, or `optax.partition` by field, leaves them
    out. Masks of `sparsify` are of `weights`; leave the steps out, `matching(exclude="steps/*")`.

    Args:
      bits: of each weight, 2 to 16. The authors leave 8 to the first and the last layer.
      axes: which weights share a step, as in `fake_quantization`.
      prunable: which leaves are quantized; all others are used as they are.

    Raises:
      TypeError: for a leaf of integers, or if `apply` gets another tree than `init` makes.
      ValueError: for bits that can't be, if no leaf is chosen, or a leaf has no such axis.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> three_bits = jp.reparam.lsq(3)
    >>> learned = three_bits.init({'kernel': jnp.array([[-3.], [.3], [.8], [2.]])})
    >>> print(f"{learned.steps['kernel'].item():.4f}")
    1.7609
    >>> learned = learned._replace(steps={'kernel': jnp.array([[.5]])})
    >>> three_bits.apply(learned)['kernel'].ravel()
    Array([-2. ,  0.5,  1. ,  1.5], dtype=float32)

    Reference: Esser et al., 2020, Learned Step Size Quantization.
    """
    grid.check_bits("lsq", bits)
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def init(params: Params) -> LearnedSteps:
        shapes = grid.shared("lsq", params, axes, prunable)

        def first(shape: jax.Array, w: jax.Array) -> jax.Array:
            size, over = jnp.abs(w).astype(jnp.float32), grid.over(shape)
            kept = jnp.maximum((size > 0).sum(over, keepdims=True), 1)
            return 2 * size.sum(over, keepdims=True) / kept / highest**0.5

        steps = map_scored(first, shapes, grid.leaves_of(params, shapes))
        return LearnedSteps(params, steps)

    def used(steps: jax.Array, w: jax.Array) -> jax.Array:
        rate = (steps.size / (w.size * highest)) ** 0.5
        s = _scaled(jnp.abs(steps), rate)
        x = jnp.clip(w.astype(jnp.float32) / jnp.where(s > 0, s, 1), lowest, highest)
        level = grid.through(x, jnp.round(x), jnp.bool_(True))
        return (s * level).astype(w.dtype)

    def apply(learned: LearnedSteps, *, key: Any = None, step: Any = None) -> Params:
        weights, steps = check_learned("lsq", LearnedSteps, learned)
        return merged(weights, map_scored(used, steps, grid.leaves_of(weights, steps)))

    return Reparameterization(init, apply)


@jax.custom_vjp
def _scaled(x: jax.Array, rate: float) -> jax.Array:
    """`x`, whose gradient is multiplied by `rate`."""
    return x


_scaled.defvjp(lambda x, rate: (x, rate), lambda rate, g: (rate * g, None))
