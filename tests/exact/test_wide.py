"""Two-word counts against Python's integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.exact import wide
from jaxprune.selection.counting import count, left

NUMBERS = [0, 1, 65_535, 65_536, 2**31 - 1, 2**31, 6_476_005_376, 2**45 + 12_345]


def number(n):
    """The Python integer, or a list of them."""
    high, low = (np.asarray(word).astype(object) for word in n)
    return np.asarray(high * 2**16 + low, object).tolist()


@pytest.mark.parametrize("a", NUMBERS)
@pytest.mark.parametrize("b", NUMBERS)
def test_arithmetic_of_two(a, b):
    x, y = wide.wide(a), wide.wide(b)
    assert number(wide.plus(x, y)) == a + b
    assert number(wide.minus(x, y)) == a - b  # below zero too
    assert bool(wide.at_least(x, y)) == (a >= b)
    if b < 2**31:
        assert int(wide.clipped(wide.minus(x, wide.wide(7)), jnp.int32(b))) == min(max(a - 7, 0), b)


def test_sums_that_int32_can_not_hold():
    n = np.array([[2**31 - 1, 5], [2**31 - 1, 0], [2**31 - 1, 2**31 - 1]], np.int32)
    wanted = n.astype(object)
    sums = jax.jit(wide.total)(n)
    assert number(sums) == wanted.sum(0).tolist() and sums.high.dtype == jnp.int32
    before = number(jax.jit(wide.total_before)(n))
    assert before == (np.cumsum(wanted, 0) - wanted).tolist()


@pytest.mark.parametrize("b", [0, 1, 647, 2**19 - 1])
def test_products(b):
    a = np.array([0, 1, 4095, 4096, 9_000_000, 2**24 - 1], np.int32)
    assert number(jax.jit(wide.times, static_argnums=1)(a, b)) == (a.astype(object) * b).tolist()


@pytest.mark.parametrize("size", [7, 10**7, 2**31, 6_476_005_376, 10**12 + 5])
def test_what_is_left_is_exact(size):
    digits = [0, 1, 5, 3_333_333, 5_000_000, 9_000_000, 9_999_999]  # of a sparsity, in 10**-7
    traced = jax.jit(jax.vmap(lambda s: left(s, size)))(jnp.asarray(digits, jnp.float32) / 1e7)

    def rounded(d):  # half to even, in integers
        whole, rest = divmod(d * size, 10**7)
        return whole + (rest > 5 * 10**6 or (rest == 5 * 10**6 and whole % 2 == 1))

    assert number(traced) == [size - rounded(d) for d in digits]
    assert number(left(0.9, size)) == size - count(0.9, size)
    assert number(left(min(size, 12), size)) == size - min(size, 12)
    assert number(left(jnp.int32(5), size)) == size - 5
