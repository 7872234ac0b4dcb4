"""Codebooks: worked numbers, zeros that stay zeros, codes that stay, sizes, and clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.quick import quick


def column(*values):
    return {"kernel": jnp.array(values)[:, None]}


def values_of(learned):
    return np.asarray(learned.values["kernel"]).ravel()


def test_k_means_by_hand():
    """The first centers are -2, 0, 2 and 4, and each becomes the mean of what is near it."""
    w = column(-2.0, -1.2, 0.5, 2.0, 2.5, 4.0, 3.5, 0.0, 0.0)
    learned = jp.reparam.codebook(2, rounds=0).init(w)
    np.testing.assert_allclose(values_of(learned), [-2, 0, 2, 4], atol=1e-6)
    learned = jp.reparam.codebook(2).init(w)
    np.testing.assert_allclose(values_of(learned), [-1.6, 0.5, 2.25, 3.75], rtol=1e-6)
    used = jp.reparam.codebook(2).apply(learned)["kernel"].ravel()
    by_hand = [-1.6, -1.6, 0.5, 2.25, 2.25, 3.75, 3.75, 0, 0]
    np.testing.assert_allclose(used, by_hand, rtol=1e-6)


def test_the_gradient_of_a_value_is_the_sum_over_its_weights():
    """Han et al., figure 3: sixteen weights, four values, gradients summed by code."""
    w = jnp.array(
        [
            *([2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12]),
            *([-0.91, 1.92, 0, -1.03], [1.87, 0, 1.53, 1.49]),
        ]
    )
    gradient = jnp.array(
        [
            *([-0.03, -0.01, 0.03, 0.02], [-0.01, 0.01, -0.02, 0.12]),
            *([-0.01, 0.02, 0.04, 0.01], [-0.07, -0.02, 0.01, -0.02]),
        ]
    )
    method = jp.reparam.codebook(2)
    learned = method.init({"kernel": w})
    np.testing.assert_allclose(values_of(learned), [-1.0, 0.0, 1.5, 2.0], atol=5e-3)
    slopes = jax.grad(lambda x: (gradient * method.apply(x)["kernel"]).sum())(learned)
    # In the figure the value 0 has the sum 0.04. Here two of its weights, with gradients 0.04 and
    # -0.02, are pruned: 0.02 is left.
    np.testing.assert_allclose(values_of(slopes), [-0.03, 0.02, 0.02, 0.04], atol=1e-6)
    assert not slopes.weights["kernel"].any() and not slopes.starts["kernel"].any()


@pytest.mark.parametrize("grids", quick([(3, -1), (1, ()), (8, ())]))
def test_no_more_values_than_bits_tell_and_zeros_stay(grids):
    bits, axes = grids
    w = jax.random.normal(jax.random.key(0), (40, 8))
    w = w * (jax.random.uniform(jax.random.key(1), (40, 8)) < 0.5) * (jnp.arange(8) > 0)[None]
    method = jp.reparam.codebook(bits, axes)
    learned = method.init({"kernel": w})
    used = np.asarray(method.apply(learned)["kernel"])
    np.testing.assert_array_equal(used == 0, w == 0)
    assert np.isfinite(values_of(learned)).all()
    rows = used.T if axes == -1 else [used.ravel()]
    assert all(len(np.unique(row[row != 0])) <= 2**bits for row in rows)


@pytest.mark.full
def test_k_means_beats_a_uniform_grid():
    w = {"kernel": jax.random.t(jax.random.key(0), 5.0, (64, 64))}
    methods = jp.reparam.codebook(4), jp.reparam.fake_quantization(4)
    shared, uniform = (method.apply(method.init(w))["kernel"] - w["kernel"] for method in methods)
    assert (shared**2).mean() < 0.8 * (uniform**2).mean()


@pytest.mark.parametrize("fixed", [True, False])
def test_codes_stay_or_follow_the_values(fixed):
    """The value of the small weights is moved beyond the other."""
    method = jp.reparam.codebook(1, fixed=fixed)
    learned = method.init(column(-2.0, -1.0, 3.0))
    np.testing.assert_allclose(values_of(learned), [-1.5, 3])
    learned = learned._replace(values={"kernel": jnp.array([[[5.0, 3.0]]])})
    used = method.apply(learned)["kernel"].ravel()
    np.testing.assert_array_equal(used, [5, 5, 3] if fixed else [3, 3, 3])
    np.testing.assert_array_equal(
        jp.reparam.codes(learned)["kernel"].ravel(), [0, 0, 1] if fixed else [1, 1, 1]
    )
    slope = jax.grad(lambda x: method.apply(x)["kernel"].sum())(learned).weights["kernel"]
    np.testing.assert_array_equal(slope, 0 if fixed else 1)


@pytest.mark.full
def test_values_learn_what_k_means_does_not_know():
    """Two values, by least squares of the outputs: gradient descent reaches them."""
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in ((0, (64, 9)), (1, (9, 1))))
    method = jp.reparam.codebook(1)
    start = method.init({"kernel": w})
    loss = lambda learned: ((x @ method.apply(learned)["kernel"] - x @ w) ** 2).mean()

    def step(carry, _):
        learned, state = carry
        updates, state = tx.update(jax.grad(loss)(learned), state)
        return (optax.apply_updates(learned, updates), state), None

    tx = optax.sgd(0.05)
    (learned, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, 300)
    two = x @ jax.nn.one_hot(jp.reparam.codes(start)["kernel"][:, 0], 2)
    least = np.linalg.lstsq(np.asarray(two), np.asarray(x @ w)[:, 0])[0]
    np.testing.assert_allclose(values_of(learned), least, rtol=1e-4)
    assert loss(learned) < loss(start)
    np.testing.assert_array_equal(learned.weights["kernel"], w)


def test_the_size_is_codes_codebook_masks_and_what_is_left():
    params = {"kernel": jnp.arange(1.0, 33).reshape(8, 4), "bias": jnp.ones(4)}
    size = lambda bits, axes=(), **kw: jp.reparam.codebook_size(
        jp.reparam.codebook(bits, axes).init(params), **kw
    )
    assert size(2) == (32 + 4 + 4, 32 * 2 + 4 * 32 + 4 * 32)
    assert size(1, -1) == (32 + 4 + 8, 32 * 1 + 8 * 32 + 4 * 32)
    masks = {"kernel": params["kernel"] > 24, "bias": None}
    assert size(2, masks=masks) == (8 + 4 + 4, 8 * 2 + 4 * 32 + 4 * 32 + 32)
    shapes = jax.eval_shape(jp.reparam.codebook(2).init, params)
    assert jp.reparam.codebook_size(shapes) == size(2)
    stacked = jp.matching(stacked={"layers/*": 0})
    layers = {"layers": {"kernel": jnp.ones((3, 8, 4))}}
    learned = jp.reparam.codebook(2, prunable=stacked).init(layers)
    assert jp.reparam.codebook_size(learned) == (96 + 12, 96 * 2 + 12 * 32)
    assert jp.reparam.codes(learned)["layers"]["kernel"].shape == (3, 8, 4)
    half = {"layers": {"kernel": jnp.arange(96).reshape(3, 8, 4) < 48}}
    assert jp.reparam.codebook_size(learned, half) == (48 + 12, 48 * 2 + 12 * 32 + 96)


@pytest.mark.parametrize("bits", [0, 9, 2.0, True])
def test_bits_that_can_not_be(bits):
    with pytest.raises(ValueError, match=rf"codebook: bits is an int from 1 to 8.*got {bits!r}"):
        jp.reparam.codebook(bits)


def test_clear_errors():
    with pytest.raises(ValueError, match=r"rounds is a whole number, at least 0; got -1"):
        jp.reparam.codebook(rounds=-1)
    with pytest.raises(TypeError, match=r"'kernel' is int32, and only floats are quantized"):
        codebook = jp.reparam.codebook(prunable=lambda params: params)
        codebook.init({"kernel": jnp.ones((2, 2), jnp.int32)})
    with pytest.raises(TypeError, match=r"codebook.apply needs what codebook.init.*got dict"):
        jp.reparam.codes({"kernel": jnp.ones(2)})
