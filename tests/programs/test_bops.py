"""Bit operations: numbers to count by hand, then the laws that tie them to FLOPs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.programs.test_flops import applied, shapes

DENSE = lambda p, x: x @ p["w"]
X = jnp.ones((1, 784))
W = {"w": jax.ShapeDtypeStruct((784, 10), jnp.float32)}


def of(fn, params, *inputs, **options):
    counted = jp.count_bops(fn, params, *inputs, **options)
    return {path: n for path, n in counted.leaves.items() if n}, counted.other


# --- numbers -------------------------------------------------------------------------------------


def test_of_a_dense_layer():
    half = {"w": jnp.arange(7840).reshape(784, 10) % 2 == 0}
    assert int(of(DENSE, W, X, bits=8, masks=half)[0]["w"]) == 451_699
    assert int(of(DENSE, W, X, bits=32)[0]["w"]) == 8_605_299
    # 7840 x (4 x 8 + 4 + 8 + log2 784): weights of 4 bits, inputs of 8
    assert of(DENSE, W, X, bits=(4, 8))[0]["w"] == pytest.approx(7840 * (44 + np.log2(784)))


@pytest.mark.parametrize(
    ("strides", "padding", "results"),
    [(1, "VALID", 6 * 6), (1, "SAME", 8 * 8), (2, "SAME", 4 * 4), (2, "VALID", 3 * 3)],
)
def test_of_a_convolution_is_by_results_and_not_by_the_size_of_the_input(strides, padding, results):
    """The authors' utility has 8 x 8 x 4 in place of 4 in both factors: 64 times as much."""
    module, x = nn.Conv(16, (3, 3), strides, padding, use_bias=False), jnp.ones((1, 8, 8, 4))
    leaves, other = of(applied(module), shapes(module, x), x, bits=8)
    # 36 terms: a window of 9 and 4 channels
    assert leaves == {"kernel": pytest.approx(results * 16 * 36 * (64 + 8 + 8 + np.log2(36)))}
    assert other == 0


def test_a_group_of_a_convolution_sums_over_its_own_channels():
    module = nn.Conv(4, (3, 3), feature_group_count=4, padding="VALID", use_bias=False)
    x = jnp.ones((1, 4, 4, 4))
    leaves, _ = of(applied(module), shapes(module, x), x, bits=2)
    assert leaves == {"kernel": pytest.approx(2 * 2 * 4 * 9 * (4 + 4 + np.log2(9)))}


def test_products_without_weights_are_of_bits_of_inputs():
    fn = lambda p, x: (x @ p["q"]) @ x.T
    leaves, other = of(fn, {"q": jnp.ones((4, 4))}, jnp.ones((2, 4)), bits=(2, 8))
    assert leaves == {"q": 32 * (16 + 10 + 2)}
    assert other == 16 * (64 + 16 + 2)  # (2, 4) times (4, 2)


def test_each_leaf_may_have_its_bits():
    fn = lambda p, x: x @ p["a"] @ p["b"]
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
    leaves, _ = of(fn, params, jnp.ones((1, 4)), bits=({"a": 2}, {"a": 3, "b": 4}))
    assert leaves == {"a": 32 * (6 + 5 + 2), "b": 16 * (32 * 4 + 36 + 3)}  # b is of float32


# --- laws ----------------------------------------------------------------------------------------


def test_one_layer_under_vmap_scan_and_jit_costs_its_turns():
    params, x = {"w": jnp.ones((4, 4))}, jnp.ones((1, 4))
    once = of(DENSE, params, x, bits=4)[0]["w"]
    turns = lambda p, x: jax.lax.scan(lambda c, _: (jax.jit(DENSE)(p, c), 0), x, length=5)
    assert of(turns, params, x, bits=4)[0]["w"] == 5 * once
    lanes = lambda p, x: jax.vmap(DENSE, (None, 0))(p, x)
    assert of(lanes, params, jnp.ones((3, 1, 4)), bits=4)[0]["w"] == 3 * once


def test_without_bits_of_its_masks_a_network_costs_additions_only():
    none = {"w": jnp.zeros((784, 10), bool)}
    dense, empty = (of(DENSE, W, X, bits=8, masks=m)[0]["w"] for m in (None, none))
    assert dense - empty == pytest.approx(64 * 7840)


def test_the_report_has_them_and_a_stack_of_layers_adds_up():
    params = {"w": jnp.ones((784, 10)).at[::2].set(0)}
    result = jp.report(params, {"w": params["w"] != 0}, DENSE, X, bits=(8, 8))
    assert int(result.layers[0].bops) == int(result.total.bops) == 451_699
    assert "BOPs" in str(result) and "451.7 k" in str(result)
    assert "BOPs of weights of 8 bits and inputs of 8." in result.notes
    assert "BOPs" not in str(jp.report(params, {"w": params["w"] != 0}, DENSE, X))


def test_the_report_counts_the_layers_of_a_stack():
    """Two layers of a scan: densities 1 and 1/2."""
    params = {"blocks": {"kernel": jnp.ones((2, 8, 8)).at[1, ::2].set(0)}}
    fn = lambda p, x: jax.lax.scan(lambda c, w: (c @ w, 0), x, p["blocks"]["kernel"])[0]
    masks = {"blocks": {"kernel": params["blocks"]["kernel"] != 0}}
    whole = jp.count_bops(fn, params, jnp.ones((1, 8)), bits=4, masks=masks)
    stacked = lambda p: jp.kernels(p)
    result = jp.report(params, masks, fn, jnp.ones((1, 8)), bits=4, prunable=stacked)
    assert result.total.bops == pytest.approx(sum(whole.leaves.values()))
    assert sum(whole.leaves.values()) == 128 * (0.75 * 16 + 8 + 3)


@pytest.mark.parametrize(
    ("bits", "error", "fragment"),
    [
        (0, ValueError, "the bits of weights are of [1, 64]; got 0."),
        ((4, 65), ValueError, "the bits of inputs are of [1, 64]; got 65."),
        (8.0, TypeError, "the bits of weights are an integer, such as 8; got 8.0."),
        ((4, 4, 4), ValueError, "such as (4, 8); got 3 values."),
        (({"v": 4}, 8), ValueError, "the bits of weights name 'v', where the params have no leaf"),
    ],
)
def test_bad_bits(bits, error, fragment):
    with pytest.raises(error) as raised:
        jp.count_bops(DENSE, W, X, bits=bits)
    assert fragment in str(raised.value)


def test_bad_input():
    with pytest.raises(TypeError, match="needs masks of bool"):
        jp.count_bops(DENSE, W, X, bits=8, masks={"w": jnp.ones((784, 10))})
    with pytest.raises(ValueError, match="give it apply_fn and inputs too"):
        jp.report({"w": jnp.ones((2, 2))}, {"w": jnp.ones((2, 2), bool)}, bits=8)
