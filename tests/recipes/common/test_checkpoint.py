"""Trees and models come back as they were, and masks take one bit a weight."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    tree |= {"none": None, "weights": jnp.arange(3.0), "small": jnp.ones(3, jnp.bfloat16)}
    tree |= {"numbers": np.array([0.1, 0.2])}  # float64: no array of JAX would hold it
    packed = checkpoint.pack(tree)
    assert packed["mask"].shape == (5,)
    assert packed["mask"].dtype == jnp.uint8
    assert_equal(checkpoint.unpack(packed, tree), tree)
    shapes = jax.tree.map(checkpoint.packed_shape, tree)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), packed, shapes)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_packed_as_their_data(impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 2)
    packed = checkpoint.pack({"keys": keys})["keys"]
    assert packed.dtype == np.uint32
    assert packed.shape == checkpoint.packed_shape(keys).shape
    unpacked = checkpoint.unpack({"keys": packed}, {"keys": keys})["keys"]
    assert (unpacked == keys).all()


def test_model(tmp_path):
    params = stacked_params()
    masks = {"kernel": params["kernel"] > 0, "bias": None}
    batch_stats = {"norm": {"mean": jnp.arange(3.0)}}
    checkpoint.save_model(tmp_path / "model", params, batch_stats, masks)
    assert_equal(checkpoint.load_model(tmp_path / "model"), (params, batch_stats, masks))


def test_a_model_on_a_full_disk_is_told_in_a_line(tmp_path):
    """What was there before is left, and nothing beside it."""
    noise = {"kernel": np.random.default_rng(0).standard_normal(100_000)}  # nothing to compress
    masks = {"kernel": noise["kernel"] > 0}
    checkpoint.save_model(tmp_path / "model", masks, {}, masks)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(
            RecipeError, match=r"^can't write '.*other': File too large; .*--resume"
        ):
            checkpoint.save_model(tmp_path / "other", noise, {}, masks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_without_running_statistics_replaces_another(tmp_path):
    params = stacked_params()
    masks = {"kernel": params["kernel"] > 0, "bias": None}
    for stats in ({"norm": jnp.ones(2)}, {}):
        checkpoint.save_model(tmp_path / "model", params, stats, masks)
    assert checkpoint.load_model(tmp_path / "model")[1] == {}


def test_a_missing_model(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no model in '.*here'"):
        checkpoint.load_model(tmp_path / "here")
