"""Numbers of two float32 against numpy's float64, which is a little finer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.exact.two_floats import (
    TwoFloats,
    ceiling,
    over,
    plus,
    power,
    times,
    total,
    two_floats,
)

RNG = np.random.default_rng(0)
FINE = 2.0**-44


def value(number):
    return np.float64(number.high) + np.float64(number.low)


def drawn(n=1_000):
    """So many of them, over twelve orders of magnitude, and as float64."""
    high = np.float32(10 ** RNG.uniform(-6, 6, n))
    low = np.float32(RNG.uniform(-0.5, 0.5, n) * np.spacing(high))
    return TwoFloats(jnp.asarray(high), jnp.asarray(low)), high.astype(np.float64) + low


@pytest.mark.parametrize("shape", [(1_000_000,), (300, 1, 400), (), (0, 3)])
def test_a_sum_is_right_to_the_last_bits(shape):
    x = RNG.random(shape, np.float32) + np.float32(0.1)
    wanted = x.astype(np.float64).sum()
    for found in (total(jnp.asarray(x)), jax.jit(total)(x)):
        np.testing.assert_allclose(value(found), wanted, rtol=FINE)
    stacked = jax.vmap(total)(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(value(stacked), [wanted, 2 * wanted], rtol=FINE)


def test_what_float32_loses():
    x = jnp.array([1e8] + [1.0] * 7)
    assert float(x.sum()) != 1e8 + 7 and value(total(x)) == 1e8 + 7


@pytest.mark.parametrize("compiled", [False, True])
def test_arithmetic(compiled):
    maybe = jax.jit if compiled else lambda f: f
    (a, fine_a), (b, fine_b) = drawn(), drawn()
    for found, wanted in (
        (maybe(plus)(a, b), fine_a + fine_b),
        (maybe(times)(a, b), fine_a * fine_b),
        (maybe(over)(a, b), fine_a / fine_b),
        (maybe(lambda a: power(a, 3.0))(a), fine_a**3),
        (maybe(lambda a: power(a, 0.8 / (1 - 0.8)))(a), fine_a**4),
    ):
        np.testing.assert_allclose(value(found), wanted, rtol=2 * FINE)
        assert (np.abs(found.low) <= np.spacing(np.abs(found.high)) / 2).all()
    found = maybe(lambda a: power(a, 2.25))(a)
    np.testing.assert_allclose(value(found), fine_a**2.25, rtol=1e-6)


def test_floats_of_python():
    assert abs(value(two_floats(0.1)) - 0.1) < 1e-16
    assert value(two_floats(jnp.float32(0.1))) == np.float64(np.float32(0.1))


@pytest.mark.parametrize(
    ("number", "wanted"),
    [(3.0, 3), (3.25, 4), (0.0, 0), (1_694_218.3, 1_694_219), (16_777_219.5, 16_777_220)],
)
def test_the_integer_above(number, wanted):
    assert int(ceiling(two_floats(number), 2.0**-30)) == wanted


def test_an_integer_that_came_out_a_little_high_is_itself():
    assert int(ceiling(two_floats(3.000000001), 2.0**-30)) == 3
    assert int(ceiling(two_floats(3.00000001), 2.0**-30)) == 4
