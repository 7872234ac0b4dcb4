"""Random sharing of weights: one short array is folded over all kernels, and it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Params
from jaxprune.keys import check_key
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.flat import chosen_of, joined, parts
from jaxprune.reparam.folding import random_places, spread, sums
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import is_none, present_leaves


class SharedArray(NamedTuple):
    """What `random_fold` trains.

    Attributes:
      weights: the params. In place of a leaf that is shared stands its shape, a node without
        arrays; all other leaves train.
      shared: float32 (m,), the numbers that all these leaves share.
      scales: float32 (leaves,), one for each of them. They have no gradient.
    """

    weights: Params
    shared: jax.Array
    scales: jax.Array


@jax.tree_util.register_static
@dataclass(frozen=True)
class Shape:
    """The shape and the dtype of a leaf that is made of the shared numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype


def random_fold(
    key: jax.Array,
    compression: float = 10.0,
    stable: bool = True,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """All kernels are made of shared numbers, one for `compression` weights, and these learn.

        forward    theta_i = scale s_i shared[(h_k + i) mod m],  k = floor(i / m)
        init       scale = rms of the leaf / rms of all
                   shared_j = sum of s_i theta_i / scale, over the square root of their number
        backward   slope of shared_j = sum of s_i scale g_i, over the sum of scale^2

    All chosen leaves are one sequence of n weights, cut in parts of m = n / compression. Each part
    has all shared numbers once, in order from a random place h_k on, with random signs s_i; the
    sums are over the weights that a number makes. So each number makes as many weights as any
    other, or one more. At compression 1 it makes one: `apply(init(params))` is `params`, and
    gradient descent is that of plain training. Places and signs come from `key` in each call:
    nothing of the size of the params is stored.

    `init` takes its numbers from the params, so the first weights have the deviation that their
    layers need, and a number is as large as a weight, which the rate of Adam counts on. `stable`
    divides the slope by the sum of the squared scales: a weight moves as far as it would alone,
    whatever the scales are. The forward pass is the same without it. The authors scale gradients
    too; this form is ours.

    Masks of `sparsify` are of `shared`, `prunable=matching("shared")`: a zero there is a zero in
    all of its weights.

    Args:
      key: of the places and the signs. Keep it with what is learned.
      compression: weights for each shared number, at least 1.
      stable: whether the slope is divided.
      prunable: which leaves share; all others are trained as they are. A stack of layers has one
        scale.

    Raises:
      TypeError: for what is no key, for a leaf that is not of floats, or if `apply` gets another
        tree than `init` makes.
      ValueError: for a compression below 1 or above the number of weights, if no leaf is chosen, or
        if a leaf is all zeros: its scale would be 0 for good.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> half = jp.reparam.random_fold(jax.random.key(0), compression=2)
    >>> learned = half.init({'kernel': jnp.array([[3., -3.], [3., 3.]]), 'bias': jnp.zeros(2)})
    >>> learned.shared.shape, learned.scales
    ((2,), Array([1.], dtype=float32))
    >>> half.apply(learned._replace(shared=jnp.array([1., 2.])))['kernel']
    Array([[-2.,  1.],
           [ 2.,  1.]], dtype=float32)

    References: Desai and Shrivastava, 2023, In Defense of Parameter Sharing for Model-Compression;
    Chen et al., 2015, Compressing Neural Networks with the Hashing Trick.
    """
    check_key("random_fold", key)
    if not isinstance(compression, (int, float)) or not 1 <= compression < math.inf:
        raise ValueError(
            "random_fold: compression is how many weights a shared number makes, at least 1; got "
            f"{compression!r}. For a tenth of the numbers take 10."
        )

    places_of = partial(random_places, key)

    def init(params: Params) -> SharedArray:
        chosen = chosen_of("random_fold", params, prunable)
        leaves = jax.tree.leaves(chosen)
        n = sum(leaf.size for leaf in leaves)
        if compression > n:
            raise ValueError(
                f"random_fold: compression is {compression:g}, and there are only {n:,} weights."
            )
        m = round(n / compression)
        rms = jnp.stack([_rms(name, leaf) for name, leaf in present_leaves(chosen)])
        scales = rms / jnp.sqrt(jnp.mean(joined(leaves) ** 2))
        units = [leaf / jnp.where(s > 0, s, 1) for leaf, s in zip(leaves, scales, strict=True)]
        places = places_of(n, m)
        counts = sums(jnp.ones(n), m, places._replace(signs=None))
        shared = sums(joined(units), m, places) / jnp.sqrt(counts)
        return SharedArray(_with_shapes(params, chosen), shared, scales)

    def apply(learned: SharedArray, *, key: Any = None, step: Any = None) -> Params:
        weights, shared, scales = check_learned("random_fold", SharedArray, learned)
        leaves, treedef = jax.tree.flatten(weights, is_leaf=_is_shape)
        shapes = [leaf.shape for leaf in leaves if _is_shape(leaf)]
        still = zip(lax.stop_gradient(scales), shapes, strict=True)
        factors = [jnp.broadcast_to(scale, shape) for scale, shape in still]
        n, m = sum(factor.size for factor in factors), len(shared)
        places = places_of(n, m)
        if stable:
            squares = sums(joined(factors) ** 2, m, places._replace(signs=None))
            shared = _divided_slope(shared, jnp.where(squares > 0, squares, 1))
        units = zip(factors, parts(spread(shared, n, places), shapes), strict=True)
        made = (factor * unit for factor, unit in units)
        used = [next(made).astype(leaf.dtype) if _is_shape(leaf) else leaf for leaf in leaves]
        return jax.tree.unflatten(treedef, used)

    return Reparameterization(init, apply)


@jax.custom_jvp
def _divided_slope(x: jax.Array, by: jax.Array) -> jax.Array:
    """`x`, whose gradient is divided."""
    return x


@_divided_slope.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x, by), (dx, _) = primals, tangents
    return x, dx / by


def _with_shapes(params: Params, chosen: Params) -> Params:
    """The params with a `Shape` in place of each chosen leaf."""
    one = lambda w, c: w if c is None else Shape(c.shape, np.dtype(c.dtype))
    return jax.tree.map(one, params, chosen, is_leaf=is_none)


def _is_shape(x: Any) -> bool:
    return isinstance(x, Shape)


def _rms(name: str, leaf: jax.Array) -> jax.Array:
    rms = jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32))))
    if not isinstance(rms, jax.core.Tracer) and rms == 0:
        raise ValueError(
            f"random_fold: '{name}' is all zeros, so its scale would be 0 for good. Leave it out: "
            f"prunable=jp.matching(exclude='{name}')."
        )
    return rms
