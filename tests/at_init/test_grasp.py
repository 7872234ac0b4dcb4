"""GraSP on six weights by hand, its sign, and against a Hessian written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.at_init import toy


def test_by_hand():
    scores = jp.at_init.grasp(toy.loss, toy.W)
    product = [-1.5879, -4.4472, 1.7290, 5.6707, 3.0934, -6.9419]
    np.testing.assert_allclose(toy.flat(scores) / toy.flat(toy.W), product, atol=5e-5)
    paper = np.array([1.5879, -2.2236, -0.5187, -4.5366, -1.8560, -2.7768])  # -w * (H g)
    np.testing.assert_allclose(toy.flat(scores), -paper, atol=5e-5)


def test_what_the_paper_removes_goes():
    masks = jp.select(jp.at_init.grasp(toy.loss, toy.W), jp.global_threshold, 0.5)
    assert toy.kept(masks) == [1, 3, 5]  # the paper removes its three highest: 0, 2 and 4


def test_the_hessian_is_that_of_what_is_prunable():
    params = toy.mlp_params(jax.random.key(0))
    own = jp.kernels(params)
    leaves, treedef = jax.tree.flatten(own)
    vector = jnp.concatenate([leaf.ravel() for leaf in leaves])

    def of_vector(v):
        parts = jnp.split(v, np.cumsum([leaf.size for leaf in leaves])[:-1])
        shaped = [p.reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
        kernels = jax.tree.unflatten(treedef, shaped)
        return toy.mlp_loss({k: params[k] | {"kernel": kernels[k]["kernel"]} for k in params})

    @jax.jit
    def by_hand(v):
        return v * (jax.hessian(of_vector)(v) @ jax.grad(of_vector)(v))

    scores = jp.at_init.grasp(toy.mlp_loss, params)
    assert [layer["bias"] for layer in scores.values()] == [None] * 3
    np.testing.assert_allclose(toy.flat(scores), by_hand(vector), rtol=1e-3, atol=1e-5)


def test_a_loss_is_one_number():
    with pytest.raises(ValueError, match=r"grasp needs a loss that returns one number; got shape"):
        jp.at_init.grasp(toy.ones, toy.W)
