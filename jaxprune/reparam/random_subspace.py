"""Random subspaces: the params move along d fixed random directions only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from scipy.linalg import hadamard as hadamard_matrix

from jaxprune.base import Params, is_int
from jaxprune.keys import check_key
from jaxprune.masks import merged
from jaxprune.prunable.rules import matching
from jaxprune.reparam.flat import chosen_of, parts
from jaxprune.reparam.hashed import with_signs
from jaxprune.reparam.reparameterization import Reparameterization, check_learned

BLOCK = 1024  # the least length of a block of directions, where there are so many params
FACTOR = 32  # a product with a Hadamard matrix is a chain of products with matrices of this size
everything = matching("*")


class Point(NamedTuple):
    """What `random_subspace` trains.

    Attributes:
      weights: the params. Those of the subspace have no gradient; all others train.
      point: float32 (d,), the coordinates in the subspace, 0 at first.
    """

    weights: Params
    point: jax.Array


def random_subspace(
    key: jax.Array,
    d: int,
    prunable: Callable[[Params], Params] = everything,
) -> Reparameterization:
    """The network uses theta_0 + P z: the d coordinates z learn, and theta_0 does not.

    P (D, d) is random and fixed; D counts all chosen weights. Its columns have length 1 and are
    orthogonal, exactly where D is a multiple of the block below. So a step of gradient descent on z
    is the projection of the step on theta, and with d = D it is that step. P is never stored: it is
    made of Hadamard matrices H and of signs S by a hash of `key`, in O(D log d) steps.

        y = H S' H S z / L,  block b of P z = H S_b y / sqrt(D),  L = the power of two from d on

    L is at least 1,024 where the params have so many. The form follows Fastfood (Le et al., 2013),
    with signs in place of Gaussians and of permutations.

    The smallest d at which training reaches 90 % of the accuracy of plain training is the
    *intrinsic dimension* d_int90. Masks of `point` choose the first d of all dimensions, so that
    one program trains any d below: `sparsify(tx, fixed(masks))`, with masks of `point` alone. If a
    key also makes theta_0, then d numbers and the keys are the network.

    With Adam, a step on z moves theta by sqrt(d) rates, and a step on theta by sqrt(D): a rate
    larger by sqrt(D / d) makes both alike.

    Args:
      key: of the directions. Keep it with what is learned.
      d: how many dimensions, at most D.
      prunable: which leaves are in the subspace, by default all; the others are trained as they
        are.

    Raises:
      TypeError: for what is no key, for a leaf that is not of floats, or if `apply` gets another
        tree than `init` makes.
      ValueError: for a d that can't be, or if no leaf is chosen.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> plane = jp.reparam.random_subspace(jax.random.key(0), d=2)
    >>> learned = plane.init({'kernel': jnp.ones((2, 2))})
    >>> plane.apply(learned)['kernel']
    Array([[1., 1.],
           [1., 1.]], dtype=float32)
    >>> moved = plane.apply(learned._replace(point=jnp.array([3., 4.])))['kernel'] - 1
    >>> round(float(jnp.linalg.norm(moved)), 5)
    5.0

    Reference: Li et al., 2018, Measuring the Intrinsic Dimension of Objective Landscapes.
    """
    check_key("random_subspace", key)
    if not is_int(d, 1):
        raise ValueError(f"random_subspace: d is a whole number, at least 1; got {d!r}.")
    directions = key

    def init(params: Params) -> Point:
        leaves = jax.tree.leaves(chosen_of("random_subspace", params, prunable))
        n = sum(leaf.size for leaf in leaves)
        if d > n:
            raise ValueError(
                f"random_subspace: d is {d:,}, and the params have only {n:,} dimensions. Take a "
                "smaller d, or more leaves with prunable=..."
            )
        return Point(params, jnp.zeros(d, jnp.float32))

    def apply(learned: Point, *, key: Any = None, step: Any = None) -> Params:
        weights, point = check_learned("random_subspace", Point, learned)
        chosen = chosen_of("random_subspace", weights, prunable)
        leaves, treedef = jax.tree.flatten(chosen)
        way = along(directions, point, sum(leaf.size for leaf in leaves))
        moves = parts(way, [leaf.shape for leaf in leaves])
        moved = [
            (lax.stop_gradient(w).astype(jnp.float32) + move).astype(w.dtype)
            for w, move in zip(leaves, moves, strict=True)
        ]
        return merged(weights, jax.tree.unflatten(treedef, moved))

    return Reparameterization(init, apply)


def along(key: jax.Array, point: jax.Array, n: int) -> jax.Array:
    """P z, float32 (n,), for the coordinates z (d,)."""
    length = max(_power_of_two(len(point)), min(BLOCK, _power_of_two(n)))
    first, second, blocks = jax.random.split(key, 3)
    y = jnp.pad(point, (0, length - len(point)))[None]
    y = hadamard(with_signs(second, hadamard(with_signs(first, y)))) / length
    several = jnp.broadcast_to(y, (-(-n // length), length))
    return hadamard(with_signs(blocks, several)).ravel()[:n] / math.sqrt(n)


def hadamard(x: jax.Array) -> jax.Array:
    """Each row of `x` (rows, L) times a Hadamard matrix of +1 and -1; L is a power of two.

    The matrix is a Kronecker product of small ones, and the outputs are in their order.
    """
    rows, length = x.shape
    left = length
    while left > 1:
        size = min(FACTOR, left)
        small = jnp.asarray(hadamard_matrix(size), jnp.float32)
        product = jnp.matmul(x.reshape(rows, -1, size), small, precision=lax.Precision.HIGHEST)
        x = product.swapaxes(1, 2).reshape(rows, length)
        left //= size
    return x


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()
