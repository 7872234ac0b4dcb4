"""Random signs by a hash of their place: made again where they are used, never stored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

# odd constants of the finalizer of MurmurHash3 (public domain), and 2^32 / the golden ratio
_STEP, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


def with_signs(key: jax.Array, x: jax.Array) -> jax.Array:
    """`x` (rows, columns), each entry times +1 or -1 by a hash of its row and column.

    Each row has 32 random bits of `key`, and the hash mixes them with the column. So a call draws
    as many random numbers as there are rows.
    """
    rows = jax.random.bits(key, (len(x), 1), jnp.uint32)
    h = rows + jnp.uint32(_STEP) * lax.broadcasted_iota(jnp.uint32, x.shape, 1)
    h = (h ^ (h >> 16)) * jnp.uint32(_FIRST)
    h = (h ^ (h >> 13)) * jnp.uint32(_SECOND)
    return jnp.where(h >> 31 == 0, x, -x)
