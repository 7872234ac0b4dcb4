"""SR-STE: dense weights learn while the network uses N of M of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.largest import n_of_m
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import map_scored


class DenseWeights(NamedTuple):
    """What methods of N:M training train.

    Attributes:
      weights: the params, dense.
    """

    weights: Params


def sr_ste(
    n: int,
    m: int,
    strength: float = 2e-4,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """The network uses the N largest of every M consecutive inputs; all weights learn.

        forward   w * mask          backward   g + strength (1 - mask) w

    The mask is made anew in every forward pass. The gradient passes unchanged to pruned weights
    (straight through), and the second term pulls them to zero, so that masks settle. With strength
    0 it is the straight-through estimator. The term goes through the optimizer: Adam scales it, so
    a strength for SGD is none for Adam.

    After training `masks = select(magnitude(kernels(w)), uniform, 1 - n / m, nm(n, m))` are those
    of the last network.

    Args:
      n, m: 1 <= n < m; inputs are the axis that a product contracts with, as in `nm`.
      strength: of the pull, at least 0. The authors take 2e-4 with SGD.
      prunable: which leaves are pruned; all others are used as they are.

    Raises:
      TypeError: if `apply` gets another tree than `init` makes.
      ValueError: for numbers that can't be, if no leaf is prunable, if m does not divide the inputs
        of a leaf, or where its inputs can't be known.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> two_of_four = jp.reparam.sr_ste(2, 4, strength=0.5)
    >>> learned = two_of_four.init({'kernel': jnp.array([[.5], [-.25], [.125], [-1.]])})
    >>> two_of_four.apply(learned)['kernel'].ravel()
    Array([ 0.5,  0. ,  0. , -1. ], dtype=float32)
    >>> slope = jax.grad(lambda l: two_of_four.apply(l)['kernel'].sum())(learned)
    >>> slope.weights['kernel'].ravel()
    Array([1.    , 0.875 , 1.0625, 1.    ], dtype=float32)

    Reference: Zhou et al., 2021, Learning N:M Fine-grained Structured Sparse Neural Networks From
    Scratch.
    """
    if not strength >= 0:
        raise ValueError(f"sr_ste: strength is at least 0; got {strength}.")
    masks_of = n_of_m("sr_ste", n, m, prunable)

    def init(params: Params) -> DenseWeights:
        masks_of(params)
        return DenseWeights(params)

    def apply(learned: DenseWeights, *, key: Any = None, step: Any = None) -> Params:
        (weights,) = check_learned("sr_ste", DenseWeights, learned)
        return merged(weights, map_scored(partial(pulled, strength), *masks_of(weights)))

    return Reparameterization(init, apply)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def pulled(strength: float, w: jax.Array, mask: jax.Array) -> jax.Array:
    """`w` under its mask; the gradient passes unchanged, and pulls what is pruned to zero."""
    return jnp.where(mask, w, 0)


def _forward(strength: float, w: jax.Array, mask: jax.Array) -> Any:
    return jnp.where(mask, w, 0), (w, mask)


def _backward(strength: float, kept: Any, g: jax.Array) -> Any:
    w, mask = kept
    return g + jnp.where(mask, 0, strength * w).astype(g.dtype), None


pulled.defvjp(_forward, _backward)
