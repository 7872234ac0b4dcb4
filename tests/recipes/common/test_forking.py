"""Children are their trunk, with another order of the data; lanes do not know each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes.common import forking, models, training
from recipes.common.data import Split

SEEDS, CHILDREN, STEPS = 2, 2, 6


@pytest.fixture(scope="module")
def f():
    generator = np.random.default_rng(0)
    images = generator.normal(size=(96, 8, 8, 1)).astype(np.float32)
    train = Split(images, generator.integers(0, 10, 96).astype(np.int32))
    rates = optax.cosine_decay_schedule(1e-2, STEPS)
    keys = training.seed_keys(0, SEEDS)
    return forking.forking(models.MLP((8,), 10), optax.adam(rates), train, keys, 16, 2)


def nothing(step, state):
    pass


@pytest.fixture(scope="module")
def trunk(f):
    return forking.advance(f, forking.trunks(f), f.keys, 0, 3, nothing)


def masks_of(trunk):
    return forking.magnitude_masks(trunk.params, 0.5)


def test_children_start_as_their_trunk(f, trunk):
    masks = masks_of(trunk)
    children, keys = forking.fork(f, trunk, masks, CHILDREN)
    assert keys.shape == (8,) and len(np.unique(jax.random.key_data(keys), axis=0)) == 4
    np.testing.assert_array_equal(*jax.random.key_data(keys).reshape(2, 4, -1))  # noise is paired
    kernel = children.params["Dense_0"]["kernel"].reshape(2, SEEDS, CHILDREN, 64, 8)
    own, mask = trunk.params["Dense_0"]["kernel"], masks["Dense_0"]["kernel"]
    for child in range(CHILDREN):
        np.testing.assert_array_equal(kernel[0, :, child], own)
        np.testing.assert_array_equal(kernel[1, :, child], jnp.where(mask, own, 0))
    assert children.opt_state.step.tolist() == [3] * 8
    moments = children.opt_state.inner_state[0]
    assert moments.count.tolist() == [3] * 8
    held = jp.get_masks(children.opt_state)["Dense_0"]["kernel"]
    assert held[:4].all() and float(held[4:].mean()) == pytest.approx(0.5, abs=0.1)


def test_children_end_at_the_same_position_under_their_masks(f, trunk):
    masks = masks_of(trunk)
    children, keys = forking.fork(f, trunk, masks, CHILDREN)
    steps = []
    children = forking.advance(f, children, keys, 3, STEPS, lambda step, state: steps.append(step))
    assert steps == [5, 6]
    assert children.opt_state.inner_state[0].count.tolist() == [STEPS] * 8
    kernel = children.params["Dense_0"]["kernel"][4:].reshape(SEEDS, CHILDREN, 64, 8)
    pruned = ~masks["Dense_0"]["kernel"]
    for child in range(CHILDREN):
        assert not kernel[:, child][pruned].any()
    assert not np.allclose(kernel[0, 0], kernel[0, 1])


def test_a_dense_child_with_the_key_of_its_trunk_is_its_trunk(f, trunk):
    children, _ = forking.fork(f, trunk, masks_of(trunk), CHILDREN)
    keys = jnp.concatenate([jnp.repeat(f.keys, CHILDREN)] * 2)
    children = forking.advance(f, children, keys, 3, STEPS, nothing)
    whole = forking.advance(f, forking.trunks(f), f.keys, 0, STEPS, nothing)
    dense = children.params["Dense_0"]["kernel"].reshape(2, SEEDS, CHILDREN, 64, 8)[0]
    for child in range(CHILDREN):
        np.testing.assert_allclose(
            dense[:, child], whole.params["Dense_0"]["kernel"], rtol=1e-4, atol=1e-6
        )
    # the same noise: exactly no instability
    measure = lambda variables: {"x": jnp.sum(variables["params"]["Dense_0"]["kernel"] ** 2)}
    values = forking.between_siblings(children, SEEDS, CHILDREN, measure, 5)["x"]
    assert values.shape == (2, SEEDS, 1, 5) and not np.ptp(values, axis=-1).any()


def test_random_masks_differ_from_trunk_to_trunk(f, trunk):
    masks = forking.random_masks(f, trunk.params, 0.8)
    assert masks["Dense_0"]["bias"] is None
    assert jax.vmap(jp.sparsity)(masks) == pytest.approx([0.8, 0.8], abs=2e-3)
    assert float(jp.pairwise(jp.overlap, masks)[0, 1]) < 0.5
