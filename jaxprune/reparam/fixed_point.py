"""Fixed-point weights: each layer has a word length that training changes as data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Params, is_int
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam import grid
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import map_scored

WORDS = range(2, 17)


class FixedPoint(NamedTuple):
    """What `fixed_point` trains.

    Attributes:
      weights: the params.
      words: bits of each weight of a leaf, float32 and a whole number, of the rank of the leaf and
        with one entry; None where a leaf is not quantized. It has no gradient.
    """

    weights: Params
    words: Any


def fixed_point(
    word: int = 8, prunable: Callable[[Params], Params] = kernels
) -> Reparameterization:
    """Each layer is in fixed point, with a word length of its own that is data.

        step = the least power of two of at least max|w| / (2^(word - 1) - 1)
        w -> step round(w / step)

    Gradients pass unchanged (straight through). `push_down` makes the words shorter between epochs;
    the program of a training step stays the same. A pruned weight stays exactly 0. All computation
    is in float, and makes nothing faster.

    Don't decay the words. Masks of `sparsify` are of `weights`; leave the words out of them,
    `matching(exclude="words/*")`.

    Args:
      word: the bits that each layer begins with, 2 to 16; a sign is one of them.
      prunable: which leaves are quantized; all others are used as they are.

    Raises:
      TypeError: for a leaf of integers, or if `apply` gets another tree than `init` makes.
      ValueError: for a word that can't be, or if no leaf is chosen.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> four_bits = jp.reparam.fixed_point(4)
    >>> learned = four_bits.init({'kernel': jnp.array([[-1.], [.3], [0.], [1.7]])})
    >>> four_bits.apply(learned)['kernel'].ravel()
    Array([-1.  ,  0.25,  0.  ,  1.75], dtype=float32)

    Reference: Kummer et al., 2021, Adaptive Precision Training (AdaPT): A Dynamic Fixed Point
    Quantized Training Approach for DNNs.
    """
    grid.check_bits("fixed_point", word)

    def init(params: Params) -> FixedPoint:
        shapes = grid.shared("fixed_point", params, (), prunable)
        return FixedPoint(params, map_scored(lambda ones: word * ones, shapes))

    def apply(learned: FixedPoint, *, key: Any = None, step: Any = None) -> Params:
        weights, words = check_learned("fixed_point", FixedPoint, learned)
        return merged(weights, map_scored(_used, words, grid.leaves_of(weights, words)))

    return Reparameterization(init, apply)


def push_down(
    learned: FixedPoint, tolerance: float = 0.01, bins: int = 100, spare: int = 0
) -> FixedPoint:
    """The shortest words whose quantized weights are distributed as the float weights are.

    The distributions are histograms from the least to the largest weight of a layer, without its
    zeros and with one more weight in each bin. A word is long enough if the divergence of the
    quantized histogram from the float one, sum p log(p / q), is at most `tolerance`. It is
    AdaPT's PushDown; the numbers of bins and the tolerance are our reading, and longer words by the
    diversity of gradients (PushUp) are left out: `spare` bits are room for gradients.

    Args:
      learned: what `fixed_point` trains.
      tolerance: of the divergence, in nats, positive.
      bins: of the histograms, at least 2.
      spare: bits that each word gets beside those, at least 0; no word is longer than 16.

    Returns:
      `learned` with other words. Works under `jit` and `vmap`.

    Raises:
      TypeError: for another tree than `fixed_point(...).init` makes.
      ValueError: for numbers that can't be.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> weights = jnp.linspace(-1, 1, 2001)[:, None]
    >>> learned = jp.reparam.fixed_point(16).init({'kernel': weights})
    >>> [float(jp.reparam.push_down(learned, t).words['kernel'][0, 0]) for t in (.5, .01)]
    [8.0, 10.0]
    """
    weights, words = check_learned("push_down", FixedPoint, learned)
    if not tolerance > 0:
        raise ValueError(f"push_down: tolerance must be positive; got {tolerance}.")
    if not is_int(bins, 2) or not is_int(spare, 0):
        raise ValueError(
            f"push_down: bins is a whole number, at least 2, and spare at least 0; got {bins!r} "
            f"and {spare!r}."
        )
    lengths = jnp.array(WORDS, jnp.float32)

    def shortest(word: jax.Array, w: jax.Array) -> jax.Array:
        share = partial(_shares, w.astype(jnp.float32), bins)
        p = share(w)
        gap = lambda length: jnp.log(p / share(_used(length, w)))
        told = jax.lax.map(lambda length: (p * gap(length)).sum(), lengths)
        enough = lengths[jnp.argmax(told <= tolerance)]
        enough = jnp.where((told <= tolerance).any(), enough, WORDS[-1])
        return jnp.full_like(word, jnp.minimum(enough + spare, WORDS[-1]))

    return FixedPoint(weights, map_scored(shortest, words, grid.leaves_of(weights, words)))


def _used(word: jax.Array, w: jax.Array) -> jax.Array:
    """A leaf in words of such length."""
    still, word = jax.lax.stop_gradient((w.astype(jnp.float32), word))
    top = 2.0 ** (jnp.round(word) - 1) - 1
    step = grid.power_of_two(jnp.max(jnp.abs(still)) / top)
    near = step * grid.rounded(still, step, -top, top)
    return grid.through(w, near.astype(w.dtype), jnp.bool_(True))


def _shares(w: jax.Array, bins: int, x: jax.Array) -> jax.Array:
    """The shares (bins,) of a histogram of x over the reach of w, without the zeros of w."""
    alive = (w != 0).ravel().astype(jnp.float32)
    x = x.ravel().astype(jnp.float32)
    counts, _ = jnp.histogram(x, bins, (w.min(), w.max()), weights=alive)
    return (counts + 1) / (alive.sum() + bins)
