"""What low-rank adapters have in common: two factors beside each kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.base import Params, is_int
from jaxprune.masks import merged
from jaxprune.prunable.layers import split_like
from jaxprune.prunable.layout import Layout, as_matrix, from_matrix
from jaxprune.prunable.rules import layouts_of
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.trees import map_named


class Adapters(NamedTuple):
    """What an optimizer trains.

    Attributes:
      weights: the params. Kernels with adapters have no gradient, but in `doped`; all others train.
      down: (inputs, rank) for each such kernel, in its dtype; a window counts as inputs. None for
        other leaves.
      up: (rank, outputs).
    """

    weights: Params
    down: Any
    up: Any


Factors = Callable[[str, jax.Array, int, int], tuple[jax.Array, jax.Array]]
# (name, kernel, inputs, outputs) -> down, up


def adapters(
    what: str,
    rank: int | Callable[[int, int], int],
    factors: Factors,
    used: Callable[[jax.Array, jax.Array], jax.Array],
    prunable: Callable[[Params], Params],
    moves: bool = False,
) -> Reparameterization:
    """The pair of a kind of adapter.

    Args:
      rank: of all kernels, or of one: (inputs, outputs) -> rank.
      factors: the first factors of a kernel.
      used: `(kernel, down @ up in the shape of the kernel) -> the kernel in use`.
      moves: whether the kernels learn too.

    Raises:
      ValueError: for a rank below 1; (in init) above the inputs or outputs of a kernel, or without
        a kernel, or where inputs and outputs can't be known.
    """
    if not callable(rank) and not is_int(rank, 1):
        raise ValueError(f"{what}: rank is a whole number, at least 1; got {rank!r}.")

    def init(params: Params) -> Adapters:
        chosen = prunable(params)
        if not jax.tree.leaves(chosen):
            raise ValueError(f"{what}: there is nothing to adapt, every leaf is None.")
        layouts = layouts_of(what, chosen)

        def made(name: str, w: Any) -> Any:
            if w is None:
                return None
            inputs, outputs = _sides(layouts[name], w.shape)
            r = rank(inputs, outputs) if callable(rank) else rank
            if r < 1:
                raise ValueError(
                    f"{what}: the rank of '{name}' would be {r}: it has {inputs} inputs and "
                    f"{outputs} outputs, and the sparsity pays for no factor. Leave it out with "
                    "prunable=jp.matching(exclude=...)."
                )
            if r > min(inputs, outputs):
                raise ValueError(
                    f"{what}: rank {r} is above that of '{name}', which has {inputs} inputs and "
                    f"{outputs} outputs. Take a lower rank, or leave it out with "
                    "prunable=jp.matching(exclude=...)."
                )
            return factors(name, w, inputs, outputs)

        both = map_named(made, chosen)
        one = lambda i: jax.tree.map(lambda pair: pair[i], both, is_leaf=_is_pair)
        return Adapters(params, one(0), one(1))

    def apply(learned: Adapters, *, key: Any = None, step: Any = None) -> Params:
        weights, down, up = check_learned(what, Adapters, learned)
        kernels = split_like(weights, down)
        layouts = layouts_of(what, kernels)

        def of_kernel(name: str, w: Any, a: Any, b: Any) -> Any:
            if w is None:
                return None
            product = jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
            matrix = product.reshape(as_matrix(w, layouts[name]).shape)
            delta = from_matrix(matrix, layouts[name], w.shape)
            kernel = w if moves else lax.stop_gradient(w)
            return used(kernel, delta).astype(w.dtype)

        return merged(weights, map_named(of_kernel, kernels, down, up))

    return Reparameterization(init, apply)


def uniform(key: jax.Array, name: str, w: jax.Array, inputs: int, rank: int) -> jax.Array:
    """The first `down` of additive adapters, in +-1/sqrt(inputs); another one for each name."""
    of_name = jax.random.fold_in(key, sum((i + 1) * b for i, b in enumerate(name.encode())))
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(of_name, (inputs, rank), jnp.float32, -bound, bound).astype(w.dtype)


def _sides(layout: Layout, shape: tuple[int, ...]) -> tuple[int, int]:
    """The inputs of a kernel, its window included, and its outputs."""
    *rest, outputs = as_matrix(jax.ShapeDtypeStruct(shape, jnp.float32), layout).shape
    return math.prod(rest), outputs


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and all(isinstance(a, jax.Array) for a in x)
