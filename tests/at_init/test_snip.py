"""SNIP on six weights by hand, and that it is saliency on a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.at_init import toy


def test_the_network_of_these_tests():
    assert toy.loss(toy.W) == pytest.approx(0.9304, abs=5e-5)
    by_hand = [-0.2910, -1.1745, 0.1940, 0.7830, 0.4938, -1.7115]
    np.testing.assert_allclose(toy.flat(jax.grad(toy.loss)(toy.W)), by_hand, atol=5e-5)


def test_by_hand():
    scores = jp.at_init.snip(toy.loss, toy.W)
    raw = [0.2910, 0.5873, 0.0582, 0.6264, 0.2963, 0.6846]
    np.testing.assert_allclose(toy.flat(scores), raw, atol=5e-5)
    shares = [0.1144, 0.2309, 0.0229, 0.2463, 0.1165, 0.2691]
    np.testing.assert_allclose(toy.flat(scores) / toy.flat(scores).sum(), shares, atol=5e-5)
    assert toy.kept(jp.select(scores, jp.global_threshold, 0.5)) == [1, 3, 5]


def test_only_what_is_prunable_has_scores():
    params = toy.mlp_params(jax.random.key(0))
    scores = jp.at_init.snip(toy.mlp_loss, params)
    assert [layer["bias"] for layer in scores.values()] == [None] * 3
    first = jp.at_init.snip(toy.mlp_loss, params, jp.matching("Dense_0/kernel"))
    assert len(jax.tree.leaves(first)) == 1
    np.testing.assert_array_equal(first["Dense_0"]["kernel"], scores["Dense_0"]["kernel"])


def test_over_batches_it_is_the_saliency_of_the_mean_gradient():
    batches = toy.X[:, None], toy.Y[:, None]
    on_batch = lambda params, batch: jnp.mean(0.5 * (toy.forward(params, batch[0]) - batch[1]) ** 2)
    both = jp.at_init.snip(jp.analysis.over_batches(on_batch, batches), toy.W)
    np.testing.assert_allclose(
        toy.flat(both), toy.flat(jp.at_init.snip(toy.loss, toy.W)), rtol=1e-5
    )


@pytest.mark.full
def test_the_first_step_of_prune_does_the_same():
    params = toy.mlp_params(jax.random.key(0))
    tx = jp.sparsify(optax.sgd(0.1), jp.prune(jp.saliency, jp.global_threshold, 0.9))
    _, state = tx.update(jax.grad(toy.mlp_loss)(params), tx.init(params), params)
    masks = jp.select(jp.at_init.snip(toy.mlp_loss, params), jp.global_threshold, 0.9)
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(state), masks)


def test_a_loss_is_one_number():
    with pytest.raises(ValueError, match=r"snip needs a loss that returns one number; got shape"):
        jp.at_init.snip(toy.ones, toy.W)
    with pytest.raises(TypeError, match=r"snip needs a loss, a function of params.*got dict"):
        jp.at_init.snip(toy.W, toy.W)


def test_nothing_prunable():
    with pytest.raises(ValueError, match="nothing is prunable among 'bias'") as error:
        jp.at_init.snip(lambda params: params["bias"].sum(), {"bias": jnp.ones(3)})
    assert "prunable=matching(...)" in str(error.value)
