"""CFSP's coarse part: the sparsities of blocks, by how far they turn their inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import check_fraction


def turn(before: jax.Array, after: jax.Array) -> jax.Array:
    """How far a block turns its inputs: the sum over tokens of the angle / pi, a float32 scalar.

    A token is a vector along the last axis. A token that is all zero counts as a right angle.

    Args:
      before, after: (..., width), what the block reads and what it gives, both of the stream.

    Raises:
      ValueError: if the shapes differ.

    Reference: Wang et al., 2024, CFSP: An Efficient Structured Pruning Framework for LLMs with
    Coarse-to-Fine Activation Information.

    >>> import jax.numpy as jnp
    >>> float(turn(jnp.array([[1., 0.], [1., 1.]]), jnp.array([[0., 2.], [2., 2.]])))
    0.5
    """
    if np.shape(before) != np.shape(after):
        raise ValueError(
            f"turn: before has shape {np.shape(before)}, and after {np.shape(after)}; both are the "
            "stream, (..., width)."
        )
    a, b = (jnp.asarray(x).astype(jnp.float32) for x in (before, after))
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
    a, b = unit(a), unit(b)
    # of unit vectors; exact for small angles, where the cosine is not
    angle = 2 * jnp.arctan2(jnp.linalg.norm(a - b, axis=-1), jnp.linalg.norm(a + b, axis=-1))
    return jnp.sum(angle / jnp.pi)


def block_sparsities(
    turns: Mapping[str, float], sparsity: float, scale: float = 1e4
) -> dict[str, float]:
    """The sparsity of each block, of the mean `sparsity`: blocks that turn more keep more.

        s = sigmoid((turns - mean(turns)) / scale),    kept = (1 - sparsity) s / mean(s)

    Where a block would keep more than all of itself, the differences of all blocks from the mean
    shrink until it keeps all; this factor is ours.

    Args:
      turns: by block, summed over the tokens of all batches, such as of `turn`.
      sparsity: the mean over blocks, in [0, 1).
      scale: what divides the turns, in tokens; the paper's 1e4 is for its number of tokens
        (128 sequences). A smaller one tells the blocks further apart.

    Returns:
      {block: sparsity}, such as for `per_layer`.

    Raises:
      ValueError: without a block, for turns that are negative or not finite, a sparsity outside
        [0, 1), and a scale that is not positive.

    Reference: as `turn`.

    >>> of = block_sparsities({'a': 30e3, 'b': 10e3, 'c': 8e3, 'd': 24e3}, 0.5)
    >>> [round(1 - sparsity, 4) for sparsity in of.values()]
    [0.7712, 0.3111, 0.2699, 0.6479]
    """
    check_fraction(sparsity, "block_sparsities takes it as the mean over blocks.")
    if not turns:
        raise ValueError("block_sparsities: turns is empty; give what each block turns.")
    if not scale > 0:
        raise ValueError(f"block_sparsities: scale must be positive; got {scale}.")
    for name, value in turns.items():
        if not 0 <= float(value) < math.inf:
            raise ValueError(
                f"block_sparsities: a turn is finite and not negative; block '{name}' has {value}."
            )
    x = np.array([float(value) for value in turns.values()])
    s = 1 / (1 + np.exp(-np.clip((x - x.mean()) / scale, -700, 700)))
    away = (1 - sparsity) * (s / s.mean() - 1)  # from the mean
    most = float(away.max())
    away = away * min(1.0, sparsity / most) if most > 0 else away
    return dict(zip(turns, (sparsity - away).tolist(), strict=True))
