"""Random pruning at initialization: exact counts, ratios of all kinds, masks that stay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.trees import named_leaves
from tests.transforms import loss, tiny_params

KEY = jax.random.key(0)


def densities(masks):
    return {path: float(m.mean()) for path, m in named_leaves(masks) if m is not None}


def test_lenet_at_one_tenth():
    shapes = {"fc1": (784, 300), "fc2": (300, 100), "fc3": (100, 10)}
    params = {path: jnp.zeros(shape) for path, shape in shapes.items()}
    masks = jp.static(KEY, 0.9).init(params).masks
    assert densities(masks) == pytest.approx({"fc1": 0.0796, "fc2": 0.2302, "fc3": 1.0}, abs=1e-4)
    assert sum(int(m.sum()) for m in masks.values()) == 26_620  # a tenth of 266,200


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_exact_for_every_key(seed):
    # Bernoulli would be off by 21.8 in the standard deviation
    masks = jp.static(jax.random.key(seed), 0.95, jp.uniform).init({"w": jnp.zeros((100, 100))})
    assert int(masks.masks["w"].sum()) == 500


@pytest.mark.full
def test_masks_stay_and_training_keeps_zeros():
    params = tiny_params()
    tx = jp.sparsify(optax.adam(0.05), jp.static(KEY, 0.8))
    state = tx.init(params)
    first = jp.get_masks(state)
    params = jp.apply_masks(params, first)
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    assert jp.overlap(first, jp.get_masks(state)) == 1
    np.testing.assert_array_equal(params["Dense_0"]["kernel"] != 0, first["Dense_0"]["kernel"])


def test_every_weight_is_as_likely_as_another():
    draw = jax.jit(jax.vmap(lambda key: jp.static(key, 0.75).init({"w": jnp.zeros((8, 8))})))
    times = draw(jax.random.split(KEY, 800)).masks["w"].sum(0)
    assert abs(times - 200).max() < 5 * np.sqrt(800 * 0.25 * 0.75)


def test_the_ratios_of_a_criterion_with_weights_at_random():
    params = tiny_params()
    scores = jp.saliency(jp.kernels(params), grads=jax.grad(loss)(params))
    criterion = jp.select(scores, jp.global_threshold, 0.8)
    masks = jp.static(KEY, 0.8, jp.allocation.like(scores)).init(params).masks
    assert densities(masks) == densities(criterion)
    assert jp.overlap(masks, criterion) < 0.5
