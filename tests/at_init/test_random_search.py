"""Random search: the best of its candidates, one candidate, and seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.at_init import toy

KEY = jax.random.key(3)
PARAMS = toy.mlp_params(jax.random.key(0))
search = jp.at_init.random_search


def drawn(key):
    return jp.select(jp.random(key)(jp.kernels(PARAMS)), jp.erk, 0.8)


def test_it_is_the_best_of_its_candidates():
    candidates = [drawn(key) for key in jax.random.split(KEY, 10)]
    losses = [float(toy.mlp_loss(jp.apply_masks(PARAMS, masks))) for masks in candidates]
    found = jax.jit(lambda key: search(key, toy.mlp_loss, PARAMS, 0.8, 10))(KEY)
    jax.tree.map(np.testing.assert_array_equal, found, candidates[int(np.argmin(losses))])
    assert len(set(losses)) == 10


def test_of_one_candidate_it_is_random_and_seeds_have_their_masks():
    keys = jax.random.split(KEY, 3)
    found = jax.vmap(lambda key: search(key, toy.mlp_loss, PARAMS, 0.8, 1))(keys)
    for i, key in enumerate(keys):
        one = drawn(jax.random.split(key, 1)[0])
        jax.tree.map(lambda m, w, i=i: np.testing.assert_array_equal(m[i], w), found, one)


def test_a_loss_that_is_nan_is_the_last():
    params = {"kernel": jnp.ones((2, 2))}
    loss = lambda p: jnp.where(p["kernel"][0, 0] != 0, jnp.nan, p["kernel"].sum())
    found = search(KEY, loss, params, 0.25, 30, jp.uniform)
    np.testing.assert_array_equal(found["kernel"], [[False, True], [True, True]])


def test_bad_input():
    with pytest.raises(ValueError, match="candidates is how many masks are drawn, at least 1"):
        search(KEY, toy.mlp_loss, PARAMS, 0.8, 0)
    with pytest.raises(ValueError, match="random_search"):
        search(KEY, lambda p: jnp.ones(3), PARAMS, 0.8)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        search(KEY, toy.mlp_loss, PARAMS, 1.0)
