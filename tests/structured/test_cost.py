"""FLOPs counted on the jaxpr of what is kept, beside those that XLA counts in what it compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.coupling.test_analyze import weights
from tests.programs.test_flops import xla_flops

KEPT = {"a": np.arange(8) < 3, "b": np.arange(6) < 5}


def compacted(fn, params, x):
    structure = jp.analyze(fn, params, x)
    return jp.structured.cost(structure, KEPT).flops, jp.compact(structure, params, KEPT)


def test_products_are_counted_as_xla_does():
    params, x = weights(a=(4, 8), b=(8, 6), c=(6, 2)), jnp.ones((5, 4))
    counted, small = compacted(lambda p, x: x @ p["a"] @ p["b"] @ p["c"], params, x)
    assert counted == 2 * 5 * (4 * 3 + 3 * 5 + 5 * 2) == xla_flops(small.fn, small.params, x)


def conv(p, x, padding):
    for kernel in (p["a"], p["b"], p["c"]):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return x


def test_and_so_are_convolutions_but_for_what_falls_on_padding():
    params, x = weights(a=(3, 3, 2, 8), b=(3, 3, 8, 6), c=(3, 3, 6, 2)), jnp.ones((1, 8, 8, 2))
    channels = 2 * 3 + 3 * 5 + 5 * 2
    counted, small = compacted(lambda p, x: conv(p, x, "SAME"), params, x)
    assert counted == 2 * 9 * 8 * 8 * channels
    # XLA leaves out taps on zeros: a window of 3 at a border of 8 pixels has 22 of 24
    assert xla_flops(small.fn, small.params, x) == 2 * 22 * 22 * channels
    counted, small = compacted(lambda p, x: conv(p, x, "VALID"), params, x)
    assert counted == xla_flops(small.fn, small.params, x)


def test_the_zeros_of_a_transposed_convolution_cost_nothing():
    params, x = weights(a=(3, 3, 2, 8), b=(3, 3, 8, 6), c=(3, 3, 6, 2)), jnp.ones((1, 4, 4, 2))

    def fn(p, x):
        for kernel in (p["a"], p["b"], p["c"]):
            x = jax.lax.conv_transpose(
                x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x

    def flops(*widths):  # of 8, 16 and 32 rows; of the window's 9 taps a quarter are on numbers
        pairs = zip((8, 16, 32), widths[:-1], widths[1:], strict=True)
        return sum(2 * 9 * rows * rows * a * b // 4 for rows, a, b in pairs)

    structure = jp.analyze(fn, params, x)
    assert jp.structured.cost(structure).flops == flops(2, 8, 6, 2)
    assert jp.structured.cost(structure, KEPT).flops == flops(2, 3, 5, 2)
    assert jp.count_flops(fn, params, x).leaves == {
        "a": 2 * 9 * 64 * 2 * 8 // 4, "b": 2 * 9 * 256 * 8 * 6 // 4, "c": 2 * 9 * 1024 * 6 * 2 // 4
    }  # fmt: skip


def test_what_is_no_product_counts_for_xla_only():
    params, x = weights(a=(4, 8), b=(8, 6), c=(6, 2)), jnp.ones((5, 4))
    fn = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
    counted, small = compacted(fn, params, x)
    # a maximum is one operation
    assert xla_flops(small.fn, small.params, x) == counted + 5 * 3 + 5 * 5


@pytest.mark.parametrize("what", ["weights", "flops", "neurons"])
def test_of_all_that_are_kept_it_is_that_of_the_dense_network(what):
    structure = jp.analyze(
        lambda p, x: x @ p["a"] @ p["b"] @ p["c"],
        weights(a=(4, 8), b=(8, 6), c=(6, 2)),
        jnp.ones((5, 4)),
    )
    everything = {"a": jnp.ones(8, bool), "b": jnp.ones(6, bool)}
    dense, same = (
        getattr(c, what)
        for c in (jp.structured.cost(structure), jp.structured.cost(structure, everything))
    )
    assert dense == same
