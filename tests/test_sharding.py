"""Layouts: masks born like their params, what explicit axes have no rule for, and donation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.sharding import automatic, explicit_sharding, sharded_like
from tests.transforms import TRANSFORMS, loss, tiny_params

AXES = [AxisType.Auto, AxisType.Explicit]


@pytest.fixture(params=AXES, ids=["auto", "explicit"])
def mesh(request):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(request.param,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def put(mesh, x):
    return jax.device_put(x, NamedSharding(mesh, P("data", "model") if x.ndim == 2 else P()))


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_masks_made_of_nothing_take_a_layout(mesh, jit):
    w = put(mesh, jnp.full((4, 8), jnp.nan))
    ones = jit(lambda w: sharded_like(jnp.ones(w.shape, bool), w))(w)  # though weights are nan
    given = np.arange(32).reshape(4, 8) % 3 == 0
    for mask, wanted in ((ones, True), (jit(sharded_like)(given, w), given)):
        assert mask.sharding.is_equivalent_to(w.sharding, 2)
        np.testing.assert_array_equal(mask, wanted)


def test_shapes_and_arrays_of_one_device_need_none():
    mask = np.array([True, False])
    for like in (jnp.ones(2), np.ones(2), jax.ShapeDtypeStruct((2,), jnp.float32)):
        np.testing.assert_array_equal(sharded_like(mask, like), mask)


def test_a_sort_under_explicit_axes(mesh):
    w = put(mesh, jnp.arange(32.0).reshape(4, 8)[::-1])
    is_explicit = AxisType.Explicit in mesh.axis_types
    assert (explicit_sharding(w) is not None) == is_explicit

    def ranked(x, scale, name):  # a scalar and a string go through as they are
        assert name == "w" and scale == 0.1 and isinstance(scale, float)
        return scale * jnp.sort(x.reshape(-1)).reshape(x.shape)

    wanted = 0.1 * np.arange(32.0, dtype=np.float32).reshape(4, 8)
    found = jax.jit(lambda w: automatic(ranked, w)(w, 0.1, "w"))(w)
    np.testing.assert_array_equal(found, wanted)
    if is_explicit:
        assert found.sharding.is_equivalent_to(w.sharding, 2)
        with pytest.raises(Exception, match="sharding"):
            jax.jit(lambda w: ranked(w, 0.1, "w"))(w)


@pytest.mark.full
@pytest.mark.parametrize("transform", ["gradual_global", "rigl_itop", "neurons"])
def test_donated_states_are_overwritten_in_place(mesh, transform):
    """No buffer is refused (a warning would be an error), and none is kept beside the new ones."""
    params = jax.tree.map(functools.partial(put, mesh), tiny_params())
    tx = jp.sparsify(optax.adam(0.05), TRANSFORMS[transform](tiny_params()))
    state = tx.init(params)

    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    layouts = jax.tree.map(lambda x: x.sharding, (params, state))
    donating = jax.jit(step, donate_argnums=(0, 1), out_shardings=layouts)
    compiled = donating.lower(params, state).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == memory.argument_size_in_bytes
    before = jax.tree.leaves((params, state))
    compiled(params, state)
    assert all(x.is_deleted() for x in before)


def test_a_threshold_over_all_is_of_a_shard_inside_shard_map_and_of_all_under_jit():
    """As the docstring of `global_threshold` says: inside, a function sees its shard alone."""
    mesh = jax.make_mesh((2,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    w = jnp.arange(8.0)
    keep = lambda w: jp.select({"w": w}, jp.global_threshold, 0.5)["w"]
    cut = {"mesh": mesh, "in_specs": P("model"), "out_specs": P("model")}
    with jax.set_mesh(mesh):
        laid_out = jax.device_put(w, NamedSharding(mesh, P("model")))
        by_shard = jax.jit(jax.shard_map(keep, **cut))(laid_out)
        together = jax.jit(keep)(laid_out)
    assert by_shard.astype(int).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert together.astype(int).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
