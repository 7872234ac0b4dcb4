"""Trees of JAX's sparse arrays hold what the masks keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

import jaxprune as jp


def network():
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 2, 4))},
        "dense": {"kernel": jax.random.normal(keys[1], (8, 5)), "bias": jnp.ones(5)},
    }
    return params, jp.select(jp.magnitude(jp.kernels(params)), jp.global_threshold, 0.8)


def test_both_are_the_masked_params():
    params, masks = network()
    masked = jp.apply_masks(params, masks)
    for convert in (jp.to_bcoo, jp.to_bcsr):
        jax.tree.map(np.testing.assert_array_equal, jp.to_dense(convert(params, masks)), masked)


def test_what_is_stored_is_what_is_kept():
    params, masks = network()
    coo = jp.to_bcoo(params, masks)
    for leaf in ("conv", "dense"):
        assert isinstance(coo[leaf]["kernel"], BCOO)
        assert coo[leaf]["kernel"].nse == int(masks[leaf]["kernel"].sum())
    csr = jp.to_bcsr(params, masks)
    assert isinstance(csr["dense"]["kernel"], BCSR)
    assert not isinstance(csr["conv"]["kernel"], BCSR)
    assert csr["dense"]["bias"] is params["dense"]["bias"]


def test_by_hand():
    weights = {"w": jnp.array([[0.0, 5, 0, 0], [8, 0, 0, 6]])}
    csr = jp.to_bcsr(weights, {"w": weights["w"] > 0})["w"]
    assert csr.data.tolist() == [5, 8, 6]
    assert csr.indices.tolist() == [1, 0, 3]
    assert csr.indptr.tolist() == [0, 1, 3]


def test_a_kept_zero_is_stored():
    weights = {"w": jnp.zeros((2, 2))}
    masks = {"w": jnp.array([[True, False], [False, False]])}
    assert jp.to_bcoo(weights, masks)["w"].nse == 1


def test_products_are_those_of_the_masked_weights():
    params, masks = network()
    x = jax.random.normal(jax.random.key(1), (3, 8))
    kernel = jp.to_bcsr(params, masks)["dense"]["kernel"]
    product = jax.jit(lambda kernel, x: x @ kernel.to_bcoo())(kernel, x)
    wanted = x @ jp.apply_masks(params, masks)["dense"]["kernel"]
    np.testing.assert_allclose(product, wanted, rtol=1e-5, atol=1e-6)


def test_under_jit_it_says_why_not():
    params, masks = network()
    with pytest.raises(ValueError, match=r"how many weights 'conv/kernel' keeps must be known"):
        jax.jit(lambda p: jp.to_bcoo(p, masks)["dense"]["bias"])(params)
