"""Relational distillation: examples that are far apart for the teacher are so for the student."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxprune.distillation.maps import check_examples, pair, root


def relational(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """The Huber loss between distances of examples, each matrix divided by its mean.

        mean over pairs i != j of huber(d_ij / mean d  -  d'_ij / mean d'),  d_ij = |h_i - h_j|

    Distances know no channels, so the widths of the two networks may differ, and no regressor is
    needed. The paper's code also counts the pairs i = j, which are 0.

    Args:
      student, teacher: features (n, ...), floating point, of n >= 2 examples.

    Returns:
      A float32 scalar. The teacher has no gradient. Features that are all equal have distances 0,
      and no gradient.

    Raises:
      ValueError: if the numbers of examples differ, or there are fewer than two.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> student, teacher = jnp.array([[0.], [1.], [3.]]), jnp.array([[0.], [1.], [2.]])
    >>> round(float(jp.distillation.relational(student, teacher)), 4)  # .5, 1.5, 1 - .75, 1.5, .75
    0.0208

    Reference: Park et al., 2019, Relational Knowledge Distillation (RKD-D).
    """
    check_examples("relational", student, teacher)
    if len(student) < 2:
        raise ValueError(
            "relational compares examples with each other: it needs at least 2, got "
            f"{len(student)}."
        )
    own, told = map(_distances, pair(student, teacher))
    return _mean(optax.huber_loss(own, told))


def _distances(h: jax.Array) -> jax.Array:
    """The distances of all pairs, divided by their mean: (n, n), 0 on the diagonal."""
    flat = h.reshape(len(h), -1)
    flat = flat - jnp.mean(flat, 0, keepdims=True)  # squares become smaller, and so their errors
    gram = jnp.matmul(flat, flat.T, precision="highest")
    squares = jnp.sum(flat**2, -1)
    both = squares[:, None] + squares[None]
    between = both - 2 * gram
    # what is below the rounding of the sum is 0: its root would have a slope of noise
    clear = between > 8 * jnp.finfo(h.dtype).eps * both
    d = root(jnp.where(clear & ~jnp.eye(len(h), dtype=bool), between, 0.0))
    return d / jnp.maximum(_mean(d), jnp.finfo(d.dtype).tiny)


def _mean(pairs: jax.Array) -> jax.Array:
    """The mean over pairs i != j of what is 0 on the diagonal."""
    n = len(pairs)
    return jnp.sum(pairs) / (n * (n - 1))
