"""Lines in an integer that is traced: rounded as Python's fractions are."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.exact.affine import rounded


def test_small_numbers():
    # 0.3 n: 0, 0.3, 0.6, 0.9, 1.2, 1.5 -> 2, ..., 2.4, and at 25 a tie that goes down
    tenths = lambda n: int(rounded(jnp.int32(n), [[(Fraction(3, 10), 0)]], [9])[0])
    assert [tenths(n) for n in (0, 1, 2, 5, 8, 15, 25)] == [0, 0, 1, 2, 2, 4, 8]
    assert tenths(10**6) == 9  # at most the size


def test_any_line_equals_that_of_fractions():
    rng = np.random.default_rng(0)
    sizes = [1, 7, 3000, 25_557_032, 2**31 - 2**24 - 1]
    for whole in (10**7, 2**31 - 2**25):
        rows = []
        for _ in range(2):
            starts = [Fraction(int(rng.integers(-size, size + 1))) for size in sizes]
            rows.append(
                [(Fraction(size - s, whole), s) for size, s in zip(sizes, starts, strict=True)]
            )
        of_row = jax.jit(lambda n, row, rows=rows: rounded(n, rows, sizes, row))
        for n in [*rng.integers(0, min(whole, 2**31 - 1), 40).tolist(), 0, whole // 2]:
            for row in (0, 1):
                exact = [round(a * n + b) for a, b in rows[row]]
                wanted = [min(max(x, 0), size) for x, size in zip(exact, sizes, strict=True)]
                assert of_row(jnp.int32(n), jnp.int32(row)).tolist() == wanted
