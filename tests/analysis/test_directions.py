"""Random directions: the card's, the length of each filter, and what does not move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.analysis import random_direction


def test_the_filter_of_the_card(monkeypatch):
    monkeypatch.setattr("optax.tree.random_like", lambda key, tree: {"w": jnp.array([[1.0], [0]])})
    d = random_direction(jax.random.key(0), {"w": jnp.array([[3.0], [4.0]])})
    np.testing.assert_array_equal(d["w"], [[5.0], [0.0]])


def test_each_filter_is_as_long_as_that_of_the_params():
    params = {
        "Conv_0": {"kernel": jax.random.normal(jax.random.key(1), (3, 3, 2, 5))},
        "Dense_0": {"kernel": jax.random.normal(jax.random.key(2), (5, 4))},
    }
    d = random_direction(jax.random.key(0), params)
    for w, z in zip(jax.tree.leaves(params), jax.tree.leaves(d), strict=True):
        others = tuple(range(w.ndim - 1))
        np.testing.assert_allclose((z**2).sum(others), (w**2).sum(others), rtol=1e-5)
    rows = random_direction(jax.random.key(0), params, axis=0)["Dense_0"]["kernel"]
    np.testing.assert_allclose((rows**2).sum(1), (params["Dense_0"]["kernel"] ** 2).sum(1), 1e-5)


def test_biases_and_norms_stay(params):
    params["GroupNorm_0"] = {"scale": jnp.ones((8,)), "bias": jnp.ones((8,))}
    d = random_direction(jax.random.key(0), params)
    assert not d["Dense_0"]["bias"].any() and not d["GroupNorm_0"]["scale"].any()
    only = random_direction(jax.random.key(0), params, moving=jp.matching("Dense_1/kernel"))
    assert not only["Dense_0"]["kernel"].any() and only["Dense_1"]["kernel"].any()


def test_directions_live_in_the_kept_weights(params, masks):
    masks["Dense_0"]["kernel"] = masks["Dense_0"]["kernel"].at[:, 3].set(False)
    d = random_direction(jax.random.key(0), params, masks)
    for name in ("Dense_0", "Dense_1"):
        z, m = d[name]["kernel"], masks[name]["kernel"]
        assert not z[~m].any() and (z[m] != 0).all()
        masked = jnp.where(m, params[name]["kernel"], 0)
        np.testing.assert_allclose((z**2).sum(0), (masked**2).sum(0), rtol=1e-5)
    assert not d["Dense_0"]["kernel"][:, 3].any()  # a filter that is gone: 0, not nan


def test_two_keys_two_directions(params):
    a, b, same = (random_direction(jax.random.key(k), params) for k in (0, 1, 0))
    assert (a["Dense_0"]["kernel"] != b["Dense_0"]["kernel"]).all()
    np.testing.assert_array_equal(a["Dense_0"]["kernel"], same["Dense_0"]["kernel"])


def test_directions_keep_dtypes_and_holes():
    params = {"w": jnp.ones((4, 2), jnp.bfloat16), "hole": None}
    d = random_direction(jax.random.key(0), params)
    assert d["hole"] is None and d["w"].dtype == jnp.bfloat16


def test_directions_of_a_stack(params, masks):
    stack = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), params)
    keys = jax.random.split(jax.random.key(0), 2)
    lanes = jax.jit(jax.vmap(lambda k, w: random_direction(k, w, masks)))(keys, stack)
    one = random_direction(keys[1], jax.tree.map(lambda w: w[1], stack), masks)
    np.testing.assert_allclose(lanes["Dense_0"]["kernel"][1], one["Dense_0"]["kernel"], rtol=1e-5)


def test_no_such_axis(params):
    said = r"'Dense_0/kernel' has shape \(4, 8\), and no axis 2.*moving="
    with pytest.raises(ValueError, match=said):
        random_direction(jax.random.key(0), params, axis=2)


@pytest.mark.parametrize(("value", "shape"), [(1e-4, (64, 8)), (5.0, (4096, 1))])
def test_lengths_in_half_precision_are_summed_in_float32(value, shape):
    """1e-4 squared is 0 in float16, and 4,096 times 25 is inf."""
    params = {"kernel": jnp.full(shape, value, jnp.float16)}
    drawn = random_direction(jax.random.key(0), params)["kernel"]
    lengths = jnp.linalg.norm(drawn.astype(jnp.float32), axis=0)
    np.testing.assert_allclose(lengths, value * shape[0] ** 0.5, rtol=2e-2)
