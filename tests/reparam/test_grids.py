"""Uniform grids: worked numbers, zeros that stay zeros, and clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp


def column(*values):
    return {"kernel": jnp.array(values)[:, None]}


def used(method, params):
    return method.apply(method.init(params))["kernel"]


def test_symmetric_and_asymmetric_by_hand():
    w = column(-1.0, 0.3, 0.7)
    four = used(jp.reparam.fake_quantization(4), w)
    np.testing.assert_allclose(four.ravel(), [-1, 2 / 7, 5 / 7], rtol=1e-6)
    asymmetric = used(jp.reparam.fake_quantization(4, symmetric=False), w)
    np.testing.assert_allclose(asymmetric.ravel(), [-1.02, 0.34, 0.68], rtol=1e-6)


def test_the_range_of_positive_weights_begins_at_zero():
    two = used(jp.reparam.fake_quantization(2, symmetric=False), column(6.0, 7.0, 8.0))
    np.testing.assert_allclose(two.ravel(), [16 / 3, 8, 8], rtol=1e-6)


def test_a_grid_for_each_input_saves_an_outlier():
    """Of two inputs one has weights of 8 and 6; the other input is a hundred times larger."""
    w, x = {"kernel": jnp.array([[0.1, -0.2], [8.0, 6.0]])}, jnp.array([1.0, 0.01])
    error = lambda axes: float(
        ((x @ w["kernel"] - x @ used(jp.reparam.fake_quantization(2, axes, False), w)) ** 2).mean()
    )
    assert error(-1) == pytest.approx(0.0254, abs=5e-5)
    assert error(-2) == pytest.approx(2.2e-5, abs=5e-7)


def test_inputs_of_a_layer_by_hand():
    x = jnp.array([[0.0, 1.0, 2.2, 7.5], [-1.0, 0.3, 0.7, 0.0]])
    one = jp.reparam.fake_quantize(x, 4)
    np.testing.assert_allclose(one, np.round(np.array(x) * 7 / 7.5) * 7.5 / 7, rtol=1e-6)
    each = jp.reparam.fake_quantize(x, 4, axes=0)
    np.testing.assert_allclose(each[1], [-1, 2 / 7, 5 / 7, 0], rtol=1e-6)
    known = jax.jit(lambda x, high: jp.reparam.fake_quantize(x, 3, (), False, (0.0, high)))
    np.testing.assert_allclose(known(x, 3.5), [[0, 1, 2, 3.5], [0, 0.5, 0.5, 0]], rtol=1e-6)
    slope = jax.grad(lambda x: known(x, 3.5).sum())(x)
    np.testing.assert_array_equal(slope, [[1, 1, 1, 0], [0, 1, 1, 1]])
    half = jp.reparam.fake_quantize(x.astype(jnp.bfloat16), 2, ends=(-1, 1))
    assert half.dtype == jnp.bfloat16 and set(half.ravel().tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("symmetric", [True, False])
def test_powers_of_two_are_fixed_point_numbers(symmetric):
    """Largest 1.75 of 3 bits: steps of 0.5833 or 0.25 become 1 or 0.25, and 2^-7 stays."""
    x = jnp.array([0.3, -0.6, 1.75, 0.0]) if symmetric else jnp.array([0.3, 0.6, 1.75, 0.0])
    grid = lambda x: jp.reparam.fake_quantize(x, 3, (), symmetric, power_of_two=True)
    wanted = [0, -1, 2, 0] if symmetric else [0.25, 0.5, 1.75, 0]
    np.testing.assert_array_equal(grid(x), wanted)
    weights = used(
        jp.reparam.fake_quantization(3, symmetric=symmetric, power_of_two=True),
        {"kernel": x[:, None]},
    )
    np.testing.assert_array_equal(weights.ravel(), wanted)
    small = 2.0**-7 * (3 if symmetric else 7) * jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(grid(small), small)
    assert not np.asarray(grid(jnp.zeros(3))).any()


def test_what_is_no_input_of_a_layer_says_so():
    with pytest.raises(TypeError, match="x is int32, and only floats"):
        jp.reparam.fake_quantize(jnp.ones(2, int), 4)
    with pytest.raises(ValueError, match="bits is an int from 2 to 16; got 17"):
        jp.reparam.fake_quantize(jnp.ones(2), 17)
    with pytest.raises(ValueError, match=r"axis|axes"):
        jp.reparam.fake_quantize(jnp.ones(2), 4, axes=3)


def test_lsq_by_hand():
    method, w = jp.reparam.lsq(3), column(-3.0, 0.3, 0.8, 2.0)
    assert float(method.init(w).steps["kernel"][0, 0]) == pytest.approx(1.76092, abs=1e-5)
    learned = method.init(w)._replace(steps={"kernel": jnp.array([[0.5]])})
    np.testing.assert_allclose(method.apply(learned)["kernel"].ravel(), [-2, 0.5, 1, 1.5])
    slopes = jax.jacobian(lambda learned: method.apply(learned)["kernel"].ravel())(learned)
    g = 1 / np.sqrt(4 * 3)
    by_hand = g * np.array([-4, 0.4, 0.4, 3])
    np.testing.assert_allclose(slopes.steps["kernel"].ravel(), by_hand, rtol=1e-5)
    of_weights = slopes.weights["kernel"].reshape(4, 4)
    np.testing.assert_allclose(of_weights, np.diag([0.0, 1, 1, 0]), atol=1e-7)


@pytest.mark.parametrize(
    "method",
    [
        jp.reparam.fake_quantization(2),
        jp.reparam.fake_quantization(3, -1, symmetric=False),
        jp.reparam.lsq(2, -1),
    ],
)
def test_zeros_stay_zeros_and_what_is_pruned_away_is_no_nan(method):
    w = jax.random.normal(jax.random.key(0), (8, 4)) + 1
    w = w * (jax.random.uniform(jax.random.key(1), (8, 4)) < 0.5) * jnp.array([[1, 1, 1, 0]])
    learned = method.init({"kernel": w})
    value, slopes = jax.value_and_grad(lambda x: (method.apply(x)["kernel"] ** 2).sum())(learned)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    np.testing.assert_array_equal(method.apply(learned)["kernel"][w == 0], 0)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_there_are_no_more_levels_than_bits_tell(bits, symmetric):
    w = {"kernel": jax.random.normal(jax.random.key(0), (40, 50))}
    levels = np.unique(used(jp.reparam.fake_quantization(bits, symmetric=symmetric), w))
    assert len(levels) <= 2**bits - symmetric and 0 in levels
    apart = np.diff(levels)
    np.testing.assert_allclose(apart, apart.min() * np.round(apart / apart.min()), rtol=1e-3)


def test_gradients_pass_but_for_what_is_clipped():
    method = jp.reparam.fake_quantization(4, clip=0.5)
    learned = method.init(column(-1.0, 0.3, 0.45, 0.7))
    assert float(method.apply(learned)["kernel"].min()) == pytest.approx(-0.5)
    slope = jax.grad(lambda learned: method.apply(learned)["kernel"].sum())(learned)
    np.testing.assert_array_equal(slope.weights["kernel"].ravel(), [0, 1, 1, 0])


def test_the_size_is_codes_steps_and_what_is_left():
    params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
    size = jp.reparam.quantized_size
    assert size(params, 4) == (8 * 4 + 4 + 1, 8 * 4 * 4 + 4 * 32 + 32)
    assert size(params, 4, -1, symmetric=False).bits == 128 + 128 + 4 * 32 + 4 * 4
    assert size(jax.eval_shape(lambda: params), 4) == size(params, 4)
    layers = {"layers": {"kernel": jnp.ones((3, 8, 4))}}
    stacked = jp.matching(stacked={"layers/*": 0})
    assert size(layers, 2, prunable=stacked) == (99, 3 * 8 * 4 * 2 + 3 * 32)


@pytest.mark.parametrize("bits", [0, 1, 17, 4.0, True])
@pytest.mark.parametrize("method", ["fake_quantization", "lsq"])
def test_bits_that_can_not_be(method, bits):
    with pytest.raises(ValueError, match=rf"{method}: bits is an int from 2 to 16; got {bits!r}"):
        getattr(jp.reparam, method)(bits)


def test_clear_errors():
    with pytest.raises(ValueError, match=r"clip is in \(0, 1\]; got 1.5"):
        jp.reparam.fake_quantization(clip=1.5)
    integers = {"kernel": jnp.ones((2, 2), jnp.int32)}
    everything = lambda params: params
    with pytest.raises(TypeError, match=r"lsq: 'kernel' is int32, and only floats are quantized"):
        jp.reparam.lsq(prunable=everything).init(integers)
    with pytest.raises(ValueError, match=r"not all of the axes 7"):
        jp.reparam.fake_quantization(axes=7).init({"kernel": jnp.ones((2, 2))})
