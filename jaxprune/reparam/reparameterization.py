"""The third pair: what the optimizer trains, and what the network uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.trees import present_leaves

Learned = Any  # pytree of arrays that any optimizer can train
L = TypeVar("L")


class Reparameterization(NamedTuple):
    """A pair of pure functions: `params -> learned`, and `learned -> the params in use`.

        learned = reparameterization.init(params)
        loss = lambda learned, batch: task_loss(reparameterization.apply(learned), batch)

    The loss is the only line of a training step that changes: the optimizer trains `learned`, and
    the network uses what `apply` makes of it. For a stack of seeds use `vmap`.

    Attributes:
      init: `params -> learned`, a pytree of arrays. Leaves that the method leaves alone are in it
        bit for bit.
      apply: `(learned, *, key=None, step=None) -> params`, of the structure, the shapes and the
        dtypes of the params; differentiable. A method that draws needs `key`, and one with a
        schedule needs `step`; the others ignore them.
    """

    init: Callable[[Params], Learned]
    apply: Callable[..., Params]


class Size(NamedTuple):
    """How much is stored.

    Attributes:
      numbers: how many numbers, an int.
      bits: how many bits they take, an int.
    """

    numbers: int
    bits: int


def size_of(learned: Learned) -> Size:
    """How many numbers a tree holds, and how many bits they take in their dtypes; None counts 0.

    A bool is one bit. A key counts as the uint32 that it holds. Shapes are enough, as
    `jax.eval_shape` makes them.

    Args:
      learned: any pytree of arrays: what `init` made, or params to compare with.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.reparam.size_of({'kernel': jnp.ones((3, 4)), 'scale': jnp.ones(3, jnp.bfloat16)})
    Size(numbers=15, bits=432)
    """
    numbers, bits = 0, 0
    for leaf in jax.tree.leaves(learned):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        shape, dtype = np.shape(leaf), jax.dtypes.result_type(leaf)
        n = int(np.prod(shape, dtype=object))
        numbers, bits = numbers + n, bits + n * _bits(dtype)
    return Size(numbers, bits)


def check_floats(what: str, chosen: Params, verb: str, only: str) -> None:
    """Raises unless there are chosen leaves, all of floats.

    Raises:
      TypeError: for a leaf that is not of floats.
      ValueError: if no leaf is chosen.
    """
    leaves = present_leaves(chosen)
    if not leaves:
        raise ValueError(f"{what}: there is nothing to {verb}, every leaf is None.")
    for name, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{what}: '{name}' is {leaf.dtype}, and only floats {only}. Leave it out: "
                f"prunable=jp.matching(exclude='{name}')."
            )


def check_learned(what: str, kind: type[L], learned: Learned) -> L:
    """`learned` itself, or TypeError unless the `init` of this method made it."""
    if not isinstance(learned, kind):
        raise TypeError(
            f"{what}.apply needs what {what}.init(params) makes, a {kind.__name__}; got "
            f"{type(learned).__name__}. A tree with these fields: {kind.__name__}(**tree)."
        )
    return learned


def _bits(dtype: np.dtype) -> int:
    if dtype == np.bool_:
        return 1
    if jax.dtypes.issubdtype(dtype, np.integer):
        return jax.numpy.iinfo(dtype).bits  # int4 takes a byte in numpy
    if jax.dtypes.issubdtype(dtype, np.floating):
        return jax.numpy.finfo(dtype).bits
    return 8 * dtype.itemsize
