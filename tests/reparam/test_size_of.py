"""How much is stored: numbers, and bits in their dtypes."""

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp


@pytest.mark.parametrize(
    ("leaf", "size"),
    [
        (jnp.ones((3, 4)), (12, 384)),
        (jnp.ones(4, jnp.bfloat16), (4, 64)),
        (jnp.ones(4, jnp.float8_e4m3fn), (4, 32)),
        (jnp.ones(5, jnp.int4), (5, 20)),
        (jnp.ones(9, bool), (9, 9)),
        (jax.random.key(0), (2, 64)),
        (jnp.ones(2, jnp.complex64), (2, 128)),
        (jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32), (2**40, 2**45)),
        (None, (0, 0)),
    ],
)
def test_a_leaf(leaf, size):
    assert jp.reparam.size_of(leaf) == size


def test_leaves_add_up_and_traced_ones_count():
    tree = [jnp.ones(3), {"key": jax.random.split(jax.random.key(0), 4)}, None]
    assert jp.reparam.size_of(tree) == (3 + 8, 96 + 256)
    assert jax.jit(jp.reparam.size_of)(tree) == (11, 352)
