"""FORCE and iterative SNIP on six weights by hand, and what tells them apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxprune as jp
from jaxprune.at_init.force import revive
from jaxprune.at_init.rounds import shrink
from tests.at_init import toy

MASKS = {"first": jnp.array([[1, 0], [1, 1]], bool), "last": jnp.array([[1, 0]], bool)}
CONTEXT = Partial(toy.loss), toy.W


def test_force_by_hand():
    slopes = jax.grad(toy.loss)(jp.apply_masks(toy.W, MASKS))  # dense, at the pruned network
    scores = toy.flat(jp.saliency(toy.W, grads=slopes))
    np.testing.assert_allclose(scores, [0.06, 0.165, 0, 0, 0.06, 0.164], atol=1e-6)
    assert toy.kept(revive(CONTEXT, MASKS, jnp.int32(2))[0]) == [1, 5]  # both had been pruned
    assert toy.kept(revive(CONTEXT, MASKS, jnp.int32(4))[0]) == [0, 1, 4, 5]


def test_iterative_snip_by_hand():
    left = jp.apply_masks(toy.W, MASKS)
    scores = toy.flat(jp.saliency(left, grads=jax.grad(toy.loss)(left)))
    np.testing.assert_allclose(scores, [0.06, 0, 0, 0, 0.06, 0], atol=1e-6)
    assert toy.kept(shrink(CONTEXT, MASKS, jnp.int32(2))[0]) == [0, 4]
    # a weight of score 0 stays rather than that one returns
    assert toy.kept(shrink(CONTEXT, MASKS, jnp.int32(3))[0]) == [0, 2, 4]


@pytest.mark.full
def test_of_one_round_both_are_snip():
    params = toy.mlp_params(jax.random.key(0))
    snip = jp.select(jp.at_init.snip(toy.mlp_loss, params), jp.global_threshold, 0.9)
    for method in (jp.at_init.force, jp.at_init.iter_snip):
        masks = method(toy.mlp_loss, params, 0.9, rounds=1)
        jax.tree.map(np.testing.assert_array_equal, masks, snip)


@pytest.mark.full
def test_more_rounds_are_another_mask():
    params = toy.mlp_params(jax.random.key(0))
    one, force, shrunk = (
        method(toy.mlp_loss, params, 0.9, rounds)
        for method, rounds in (
            (jp.at_init.iter_snip, 1),
            (jp.at_init.force, 10),
            (jp.at_init.iter_snip, 10),
        )
    )
    for a, b in ((one, force), (one, shrunk), (force, shrunk)):
        assert jp.overlap(a, b) < 1
