"""A short array laid out over a long sequence, part by part, each from another place on."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.reparam.hashed import with_signs


class Places(NamedTuple):
    """Where each entry of the sequence lies in the short array, and with which sign.

    Attributes:
      shifts: int32 (parts,): part k begins at the place shifts[k] of the short array.
      signs: a key of the signs; None if all are +1.
    """

    shifts: jax.Array
    signs: jax.Array | None


def random_places(key: jax.Array, n: int, m: int) -> Places:
    """Random places of n entries in an array of m."""
    shifts, signs = jax.random.split(key)
    return Places(jax.random.randint(shifts, (-(-n // m),), 0, m), signs)


def spread(short: jax.Array, n: int, places: Places) -> jax.Array:
    """The sequence (n,): s_i short[(h_k + i) mod m], with k = floor(i / m).

    Each part is one slice of the array written twice in a row: no entry is looked up by an index.

    >>> import jax.numpy as jnp
    >>> spread(jnp.arange(4.), 10, Places(jnp.array([1, 3, 0]), None))
    Array([1., 2., 3., 0., 3., 0., 1., 2., 0., 1.], dtype=float32)
    """
    twice = jnp.concatenate([short, short])
    part = lambda shift: lax.dynamic_slice(twice, (shift,), short.shape)
    whole = jax.vmap(part)(places.shifts).ravel()[:n]
    return whole if places.signs is None else with_signs(places.signs, whole)


def sums(sequence: jax.Array, m: int, places: Places) -> jax.Array:
    """The transpose of `spread`: for each of the m places the sum of the entries that lie there.

    >>> import jax.numpy as jnp
    >>> sums(jnp.ones(10), 4, Places(jnp.array([1, 3, 0]), None))
    Array([3., 3., 2., 2.], dtype=float32)
    """
    short = jax.ShapeDtypeStruct((m,), sequence.dtype)
    transposed = jax.linear_transpose(lambda x: spread(x, len(sequence), places), short)
    return transposed(sequence)[0]
