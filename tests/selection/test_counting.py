"""Counts are exact, against fractions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.selection.counting import count

SIZES = (
    *range(1, 130), 1_000, 9_999, 10_000, 10_001, 235_200, 266_610, 268_336, 999_983, 10_000_000,
    25_502_912, 25_557_032, 86_567_656, 2**24 + 1, 2**30 + 3, 2_000_000_011,
)  # fmt: skip


def exact(decimal, size):
    """round(decimal * size), half to even, in rational numbers."""
    return round(Fraction(decimal) * size)


def test_python_counts_are_exact_for_decimals():
    short = [f"0.{i:0{digits}d}" for digits in (1, 2) for i in range(10**digits)]
    long = [f"0.{i:03d}" for i in range(1000)]
    long += ["0.9999", "0.99999", "0.0001", "0.123456", "0.333333", "0.9999999"]
    for size in SIZES:
        for decimal in short + long * (size >= 100):
            assert count(float(decimal), size) == exact(decimal, size), (decimal, size)


@pytest.mark.full
def test_traced_counts_are_exact_for_decimals():
    decimals = [f"0.{i:03d}" for i in range(1000)]
    decimals += ["0.9999", "0.99999", "0.0001", "0.123456", "0.333333", "0.9999999"]
    sparsities = jnp.array([float(d) for d in decimals], jnp.float32)
    for size in SIZES:
        expected = [exact(d, size) for d in decimals]
        np.testing.assert_array_equal(count(sparsities, size), expected, err_msg=str(size))


def test_traced_counts_are_exact_for_all_decimals_of_seven_digits():
    decimals = np.arange(0, 10_000_000, 7)
    counts = count(jnp.asarray(decimals / 1e7, jnp.float32), 10_000_000)
    assert int((np.asarray(counts) != decimals).sum()) == 0


def test_counts_under_jit_equal_counts_without():
    sparsities = jnp.linspace(0.0, 0.999, 1000)
    for size in (7, 266_610, 2_000_000_011):
        jitted = jax.jit(lambda s, size=size: count(s, size))(sparsities)
        np.testing.assert_array_equal(jitted, count(sparsities, size))


@pytest.mark.parametrize(
    ("sparsity", "size", "expected"),
    [
        (0.9, 25_557_032, 23_001_329),  # 23,001,328.8; a float32 product gives 23,001,328
        (0.5, 5, 2),  # 2.5
        (0.5, 7, 4),  # 3.5
        (0.5, 1, 0),
        (0.145, 100, 14),  # 14.499999999999998 in binary, 14.5 in decimal
        (0.155, 100, 16),  # 15.5
        (0.25, 2, 0),
        (0.75, 2, 2),
        (0.9, 15, 14),  # 13.5
        (0.0, 10, 0),
        (0.9, 0, 0),
    ],
)
def test_half_to_even(sparsity, size, expected):
    assert count(sparsity, size) == expected
    assert int(count(jnp.float32(sparsity), size)) == expected


def test_a_python_number_gives_a_python_int():
    assert type(count(0.5, 10)) is int and type(count(np.float64(0.5), 10)) is int
    assert count(jnp.float32(0.5), 10).dtype == jnp.int32


def test_float32_of_numpy_counts_as_float32_of_jax():
    assert count(np.float32(0.9), 25_557_032) == 23_001_329
    assert count(np.array(0.9, np.float32), 25_557_032) == 23_001_329


def test_an_integer_is_a_count_already():
    assert count(3, 10) == 3 and count(12, 10) == 10
    assert count(jnp.int32(3), 10) == 3 and count(jnp.int32(12), 10) == 10


def test_an_integer_of_numpy_is_a_count_already():
    assert count(np.int64(3), 10) == 3
    assert count(np.array(3, np.int32), 10) == 3


@pytest.mark.parametrize("sparsity", [-0.5, -1e-3, np.nan, 1.5, -3])
def test_a_traced_count_never_leaves_the_array(sparsity):
    # a schedule is checked at its ends only; with a count below 0 the search would not end
    sparsity = jnp.asarray(sparsity)
    assert 0 <= int(count(sparsity, 10)) <= 10
