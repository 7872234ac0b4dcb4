"""Sanity controls: exact counts by layer, randomness by key, and nothing else of the masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

MASKS = {
    "a": jnp.arange(30).reshape(5, 6) < 7,
    "none": None,
    "empty": jnp.zeros((2, 3), bool),
    "full": jnp.ones((4,), bool),
}
KEY = jax.random.key(0)
shuffle = jax.jit(jp.tickets.shuffle)


def kept(masks):
    return {path: None if mask is None else int(mask.sum()) for path, mask in masks.items()}


def init(key):
    keys = jax.random.split(key)
    return {"a": jax.random.normal(keys[0], (5, 6)), "bias": jax.random.normal(keys[1], (6,))}


# --- shuffle -------------------------------------------------------------------------------------


def test_shuffle_keeps_as_many_of_each_leaf():
    shuffled = shuffle(KEY, MASKS)
    assert kept(shuffled) == {"a": 7, "none": None, "empty": 0, "full": 4}
    for path in ("a", "empty", "full"):
        assert shuffled[path].shape == MASKS[path].shape and shuffled[path].dtype == bool


@pytest.mark.full
def test_shuffle_jitted_is_shuffle():
    jitted = shuffle(KEY, MASKS)
    jax.tree.map(np.testing.assert_array_equal, jitted, jp.tickets.shuffle(KEY, MASKS))


def test_shuffle_under_vmap_is_one_a_seed():
    keys = jax.random.split(KEY, 3)
    counts = jnp.array([1, 9, 20])
    stack = {"a": jnp.arange(30)[None] < counts[:, None], "none": None}
    lanes = jax.jit(jax.vmap(jp.tickets.shuffle))(keys, stack)
    assert lanes["a"].sum(1).tolist() == [1, 9, 20]
    for i in range(3):
        alone = shuffle(keys[i], jax.tree.map(lambda x, i=i: x[i], stack))
        np.testing.assert_array_equal(lanes["a"][i], alone["a"])


def test_shuffle_is_its_key_and_forgets_the_mask():
    first = shuffle(KEY, {"a": MASKS["a"]})["a"]
    backwards = shuffle(KEY, {"a": MASKS["a"][::-1, ::-1]})["a"]
    np.testing.assert_array_equal(first, backwards)
    assert (first != shuffle(jax.random.key(1), {"a": MASKS["a"]})["a"]).any()


def test_two_leaves_alike_are_shuffled_apart():
    both = shuffle(KEY, {"a": MASKS["a"], "b": MASKS["a"]})
    assert (both["a"] != both["b"]).any()


def test_every_place_is_as_likely():
    draws = jax.vmap(shuffle, in_axes=(0, None))(jax.random.split(KEY, 4000), MASKS)
    # 7 of 30; the standard error of a mean over 4,000 draws is 0.0067
    np.testing.assert_allclose(draws["a"].mean(0), 7 / 30, atol=0.03)


def test_shuffle_of_no_masks():
    assert jp.tickets.shuffle(KEY, {"bias": None}) == {"bias": None}


def test_shuffle_needs_a_key_and_masks():
    with pytest.raises(TypeError, match=r"shuffle\(key, ...\) needs a key of jax.random"):
        jp.tickets.shuffle(0, MASKS)
    with pytest.raises(TypeError, match=r"needs masks of bool.*that of 'a' is float32"):
        jp.tickets.shuffle(KEY, {"a": jnp.ones(3)})


# --- reinitialize --------------------------------------------------------------------------------


def test_reinitialize_draws_anew_under_the_masks():
    masks = {"a": MASKS["a"], "bias": None}
    drawn, params = init(KEY), jp.tickets.reinitialize(KEY, init, masks)
    np.testing.assert_array_equal(params["a"], jnp.where(MASKS["a"], drawn["a"], 0))
    np.testing.assert_array_equal(params["bias"], drawn["bias"])
    other = jp.tickets.reinitialize(jax.random.key(1), init, masks)
    assert (params["a"] != other["a"])[MASKS["a"]].all()


def test_reinitialize_under_vmap_is_one_a_seed():
    keys = jax.random.split(KEY, 2)
    masks = jax.vmap(shuffle, in_axes=(0, None))(keys, {"a": MASKS["a"], "bias": None})
    lanes = jax.vmap(jp.tickets.reinitialize, in_axes=(0, None, 0))(keys, init, masks)
    for i in range(2):
        own = jax.tree.map(lambda x, i=i: x[i], masks)
        alone = jp.tickets.reinitialize(keys[i], init, own)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=i: x[i], lanes), alone)


def test_reinitialize_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="'a' has shape"):
        jp.tickets.reinitialize(KEY, init, {"a": MASKS["a"].T, "bias": None})
    with pytest.raises(TypeError, match=r"reinitialize\(key, ...\) needs a key"):
        jp.tickets.reinitialize(init, KEY, {"a": MASKS["a"], "bias": None})
