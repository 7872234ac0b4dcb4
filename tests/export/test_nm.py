"""N:M weights without their zeros: by hand, and bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.quick import quick


def test_a_row_by_hand():
    weights = jnp.array([1.0, 2.0, 0.0, 0.0])
    compressed = jp.export.compress_nm(weights, jnp.array([True, True, False, False]), 2, 4, axis=0)
    assert compressed.values.tolist() == [[1.0, 2.0]]
    assert compressed.metadata.tolist() == [0b0100]  # places 0 and 1, two bits each
    assert jp.export.decompress_nm(compressed).tolist() == weights.tolist()


CASES = {
    "2:4 before the last axis": ((8, 3), 2, 4, -2, jnp.float32),
    "2:4 of a convolution's inputs": ((3, 3, 8, 5), 2, 4, 2, jnp.bfloat16),
    "1:2 of the last": ((5, 6), 1, 2, -1, jnp.float16),
    "3:8": ((16, 2), 3, 8, 0, jnp.float32),
    "4:16": ((32, 2), 4, 16, 0, jnp.float32),
    "7:32": ((64, 2), 7, 32, 0, jnp.float32),
}


@pytest.mark.parametrize("case", quick(CASES))
def test_decompressing_gives_the_masked_weights_bit_for_bit(case):
    shape, n, m, axis, dtype = CASES[case]
    weights = jax.random.normal(jax.random.key(0), shape, dtype)
    mask = jp.select(jp.magnitude({"w": weights}), jp.uniform, 1 - n / m, jp.nm(n, m, axis))["w"]
    compressed = jax.jit(jp.export.compress_nm, static_argnums=(2, 3, 4))(weights, mask, n, m, axis)
    assert compressed.values.size == weights.size * n // m
    back = jax.jit(jp.export.decompress_nm)(compressed)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, jnp.where(mask, weights, 0))


def test_two_of_four_in_bfloat16_take_nine_of_sixteen_bits():
    weights = jnp.ones((64, 16), jnp.bfloat16)
    mask = jnp.broadcast_to((jnp.arange(64) % 4 < 2)[:, None], (64, 16))
    compressed = jp.export.compress_nm(weights, mask, 2, 4)
    assert compressed.values.nbytes + compressed.metadata.nbytes == weights.nbytes * 9 // 16


def test_a_kept_zero_and_its_sign_stay():
    weights = jnp.array([0.0, -0.0, 3.0, 4.0])
    mask = jnp.array([False, True, True, False])
    back = np.asarray(jp.export.decompress_nm(jp.export.compress_nm(weights, mask, 2, 4, 0)))
    assert back.tolist() == [0.0, 0.0, 3.0, 0.0]
    assert np.signbit(back).tolist() == [False, True, False, False]


def test_mistakes():
    weights = jnp.ones((8, 3))
    with pytest.raises(ValueError, match=r"not 2:4 along axis -2: groups keep 3, 4 entries"):
        jp.export.compress_nm(weights, jnp.ones((8, 3), bool).at[0, 0].set(False), 2, 4)
    with pytest.raises(ValueError, match=r"2:3 along axis -2 does not fit shape \(8, 3\)"):
        jp.export.compress_nm(weights, jnp.ones((8, 3), bool), 2, 3)
    with pytest.raises(ValueError, match=r"bool of shape \(8, 3\), as the weights; got bool of"):
        jp.export.compress_nm(weights, jnp.ones((8, 4), bool), 2, 4)
