"""Random signs by a hash of their place: made again where they are used, never stored."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

# odd constants of the finalizer of MurmurHash3 (public domain), and 2^32 / the golden ratio
_STEP, _FIRST, _SECOND = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


def with_signs(key: jax.Array, x: jax.Array) -> jax.Array:
    """`x`, each entry times +1 or -1 by a hash of its index in `x.ravel()` and of 64 bits of `key`.

    One index for all axes: XLA would divide to make an index of each row, entry by entry.
    """
    start, mixed = jax.random.bits(key, (2,), jnp.uint32)
    h = start + jnp.uint32(_STEP) * lax.iota(jnp.uint32, x.size).reshape(x.shape)
    h = ((h ^ (h >> 16)) ^ mixed) * jnp.uint32(_FIRST)
    h = (h ^ (h >> 13)) * jnp.uint32(_SECOND)
    return jnp.where(h >> 31 == 0, x, -x)
