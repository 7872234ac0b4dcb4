"""Checkpoints come back as they were, and masks take one bit a weight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes.common import checkpoint
from recipes.common.errors import RecipeError


def stacked_params():
    keys = jax.random.split(jax.random.key(0), 3)  # 3 seeds of 35 weights: 105 is no multiple of 8
    return {
        "kernel": jax.vmap(lambda k: jax.random.normal(k, (5, 7)))(keys),
        "bias": jnp.ones((3, 7)),
    }


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def test_pack_is_one_bit_per_bool_and_undone_by_unpack():
    tree = {"mask": jax.random.bernoulli(jax.random.key(0), 0.3, (5, 7)), "flag": jnp.array(True)}
    tree |= {"none": None, "weights": jnp.arange(3.0)}
    packed = checkpoint.pack(tree)
    assert packed["mask"].shape == (5,)
    assert packed["mask"].dtype == jnp.uint8
    assert_equal(checkpoint.unpack(packed, tree), tree)


def test_model(tmp_path):
    params = stacked_params()
    masks = {"kernel": params["kernel"] > 0, "bias": None}
    batch_stats = {"norm": {"mean": jnp.arange(3.0)}}
    checkpoint.save_model(tmp_path / "model", params, batch_stats, masks)
    assert_equal(checkpoint.load_model(tmp_path / "model"), (params, batch_stats, masks))


def test_model_without_running_statistics(tmp_path):
    params = stacked_params()
    masks = {"kernel": params["kernel"] > 0, "bias": None}
    checkpoint.save_model(tmp_path / "model", params, {}, masks)
    assert checkpoint.load_model(tmp_path / "model")[1] == {}


def test_checkpoint_of_an_optimizer(tmp_path):
    params = stacked_params()
    tx = jp.sparsify(optax.adam(1e-3), jp.prune(jp.magnitude, jp.uniform, 0.5))
    state = jax.vmap(tx.init)(params)
    _, state = jax.vmap(tx.update)(params, state, params)
    checkpoint.save_checkpoint(tmp_path, 7, {"sparse": state})
    step, loaded = checkpoint.load_checkpoint(
        tmp_path, jax.tree.map(jnp.zeros_like, {"sparse": state})
    )
    assert step == 7
    assert_equal(loaded, {"sparse": state})


def test_only_the_last_checkpoint_is_kept(tmp_path):
    for step in (9, 10):
        checkpoint.save_checkpoint(tmp_path, step, {"x": jnp.full(2, step)})
    assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_no_checkpoint_or_another_configuration(tmp_path):
    with pytest.raises(RecipeError, match="no checkpoint in"):
        checkpoint.load_checkpoint(tmp_path / "none", {"x": jnp.zeros(2)})
    checkpoint.save_checkpoint(tmp_path, 1, {"x": jnp.zeros(2)})
    for other in ({"x": jnp.zeros(3)}, {"y": jnp.zeros(2)}):
        with pytest.raises(RecipeError, match="of another configuration"):
            checkpoint.load_checkpoint(tmp_path, other)
