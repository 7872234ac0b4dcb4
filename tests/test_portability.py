"""Steps lower for TPUs and GPUs on a machine that has neither, and nothing is ever float64."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import export

import jaxprune as jp
from recipes.common import models, settings, training
from tests.transforms import TRANSFORMS, loss, tiny_params

PLATFORMS = ("cpu", "cuda", "tpu")


def lower(f, *args):
    """Lowers for all platforms, from shapes alone; AssertionError if anything is float64."""
    shapes = jax.eval_shape(lambda: args)
    exported = export.export(jax.jit(f), platforms=PLATFORMS)(*shapes)
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    assert "f32>" in text
    assert "f64>" not in text


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_step_of_every_transform_over_seeds(transform):
    params = tiny_params()
    tx = jp.sparsify(optax.adamw(1e-3), TRANSFORMS[transform](params))

    def step(params, opt_state):
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    stack = jax.tree.map(lambda x: jnp.stack([x, x]), (params, tx.init(params)))
    lower(jax.vmap(step), *stack)


@pytest.mark.parametrize("model", ["lenet", "conv"])
def test_a_step_of_a_recipe(model):
    """The convolutional one with the recipes' own convolution, its gradient and its seeds."""
    tx = settings.gradual(optax.adam(1e-3), 100, 0.9, 10)
    arm = training.Arm(models.model(model, 10), lambda key: tx, training.Weights.SPARSE)
    keys, images = training.seed_keys(0, 2), jnp.zeros((8, 8, 8, 1))
    state = jax.eval_shape(lambda: training.init(arm, keys, images))
    train = training.Split(images, jnp.zeros(8, jnp.int32))
    lower(training.make_chunk(arm), state, train, jnp.zeros((3, 2, 4), jnp.int32), keys)


def test_finding_masks_and_counting_them():
    params = tiny_params()

    def whole(params):
        masks = jp.select(jp.lamp()(jp.kernels(params)), jp.global_threshold, 0.5)
        return jp.sparsity(masks), jp.overlap(masks, masks), jp.pack(masks)

    lower(whole, params)
