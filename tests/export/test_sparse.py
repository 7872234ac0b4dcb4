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
    for convert in (jp.export.to_bcoo, jp.export.to_bcsr):
        jax.tree.map(
            np.testing.assert_array_equal, jp.export.to_dense(convert(params, masks)), masked
        )


def test_what_is_stored_is_what_is_kept():
    params, masks = network()
    coo = jp.export.to_bcoo(params, masks)
    for leaf in ("conv", "dense"):
        assert isinstance(coo[leaf]["kernel"], BCOO)
        assert coo[leaf]["kernel"].nse == int(masks[leaf]["kernel"].sum())
    csr = jp.export.to_bcsr(params, masks)
    assert isinstance(csr["dense"]["kernel"].T, BCSR)
    assert csr["dense"]["kernel"].nse == int(masks["dense"]["kernel"].sum())
    assert isinstance(csr["conv"]["kernel"], jax.Array)
    assert csr["dense"]["bias"] is params["dense"]["bias"]


def test_by_hand():
    weights = {"w": jnp.array([[0.0, 5, 0, 0], [8, 0, 0, 6]])}
    csr = jp.export.to_bcsr(weights, {"w": weights["w"] > 0})["w"]
    # output after output: 8, 5, none, 6
    assert csr.shape == (2, 4) and csr.T.shape == (4, 2)
    assert csr.data.tolist() == [8, 5, 6]
    assert csr.T.indices.tolist() == [1, 0, 1]
    assert csr.T.indptr.tolist() == [0, 1, 2, 2, 3]


def test_a_kept_zero_is_stored():
    weights = {"w": jnp.zeros((2, 2))}
    masks = {"w": jnp.array([[True, False], [False, False]])}
    assert jp.export.to_bcoo(weights, masks)["w"].nse == 1


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (0, 8)])
@pytest.mark.parametrize("convert", [jp.export.to_bcoo, jp.export.to_bcsr, jp.apply_masks])
def test_products_as_users_write_them(convert, shape):
    params, masks = network()
    x = jax.random.normal(jax.random.key(1), shape)
    kernel = convert(params, masks)["dense"]["kernel"]
    wanted = x @ jp.apply_masks(params, masks)["dense"]["kernel"]
    close = lambda product: np.testing.assert_allclose(product, wanted, rtol=1e-5, atol=1e-6)
    close(jp.export.sparse_matmul(x, kernel))
    close(jax.jit(jp.export.sparse_matmul)(x, kernel))
    if shape == (3, 8):
        close(x @ kernel)
        if convert is not jp.export.to_bcoo:  # numpy does not leave it the product
            close(np.asarray(x) @ kernel)
        close(jax.jit(lambda x, kernel: x @ kernel)(x, kernel))
        close(jax.vmap(jp.export.sparse_matmul, (0, None))(x, kernel))


def test_slopes_of_a_sparse_product_are_those_of_what_is_kept():
    params, masks = network()
    masked = jp.apply_masks(params, masks)["dense"]["kernel"]
    x = jax.random.normal(jax.random.key(1), (3, 8))
    kernel = jp.export.to_bcsr(params, masks)["dense"]["kernel"]

    def loss(values, x):
        leaves, treedef = jax.tree.flatten(kernel)
        return (
            jp.export.sparse_matmul(x, jax.tree.unflatten(treedef, [values, *leaves[1:]])) ** 2
        ).sum()

    of_values, of_x = jax.grad(loss, (0, 1))(kernel.data, x)
    dense, dense_x = jax.grad(lambda w, x: ((x @ w) ** 2).sum(), (0, 1))(masked, x)
    by_outputs = dense.T[masks["dense"]["kernel"].T]
    np.testing.assert_allclose(of_values, by_outputs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, dense_x, rtol=1e-5, atol=1e-5)


def test_a_product_that_does_not_fit_says_why():
    params, masks = network()
    kernel = jp.export.to_bcsr(params, masks)["dense"]["kernel"]
    with pytest.raises(ValueError, match=r"\(in, out\); got \(3, 5\) and \(8, 5\)"):
        jp.export.sparse_matmul(jnp.ones((3, 5)), kernel)
    with pytest.raises(ValueError, match=r"got \(3, 2\) and \(3, 3, 2, 4\)"):
        jp.export.sparse_matmul(jnp.ones((3, 2)), params["conv"]["kernel"])


def test_under_jit_it_says_why_not():
    params, masks = network()
    with pytest.raises(ValueError, match=r"how many weights 'conv/kernel' keeps must be known"):
        jax.jit(lambda p: jp.export.to_bcoo(p, masks)["dense"]["bias"])(params)


def test_a_transposed_kernel_multiplies_without_a_scatter():
    """JAX's product of BCOO scatters; the product of a BCSR on the left is one call on CPU."""
    params, masks = network()
    kernel = jp.export.to_bcsr(params, masks)["dense"]["kernel"]
    jaxpr = str(jax.make_jaxpr(lambda x, kernel: x @ kernel)(jnp.ones((32, 8)), kernel))
    assert "bcsr_dot_general" in jaxpr and "bcoo_dot_general" not in jaxpr


def test_kernels_of_bcsr_in_a_batch_of_networks():
    """The stack of kernels is a loop of kernels: their numbers of weights are equal."""
    params, masks = network()
    one = jp.export.to_bcsr(params, masks)["dense"]["kernel"]
    two = jax.tree.map(lambda x: jnp.stack([x, x]), one.data)
    leaves, treedef = jax.tree.flatten(one)
    of_values = lambda values, x: x @ jax.tree.unflatten(treedef, [values, *leaves[1:]])
    x = jax.random.normal(jax.random.key(1), (3, 8))
    for lane in jax.vmap(of_values, (0, None))(two, x):
        np.testing.assert_allclose(lane, x @ one, rtol=1e-5, atol=1e-6)
