"""The networks: shapes, sizes, and batch norm's running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes.common.errors import RecipeError
from recipes.common.models import model


def parameters(module, image):
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def test_lenet_300_100_has_its_266610_parameters():
    assert parameters(model("lenet", 10), jnp.zeros((1, 28, 28, 1))) == 266_610


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_resnet20_has_272474_parameters(norm):
    # 269,722 of the paper's (no projections), and two projections with their norms
    assert parameters(model("resnet20", 10, norm), jnp.zeros((1, 32, 32, 3))) == 272_474


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet20"])
def test_logits(name):
    module = model(name, 7)
    images = jnp.zeros((3, 8, 8, 1))
    logits, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert logits.shape == (3, 7)
    assert "batch_stats" not in variables


def test_batch_norm_learns_in_training_and_is_fixed_in_use():
    module = model("conv", 10, "batch")
    images = 2 + jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    variables = module.init(jax.random.key(0), images)
    _, changed = module.apply(variables, images, train=True, mutable=["batch_stats"])
    before, after = variables["batch_stats"], changed["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
    assert all(jax.tree.leaves(moved))

    variables = {"params": variables["params"], "batch_stats": after}
    alone = module.apply(variables, images[:1])
    np.testing.assert_allclose(alone, module.apply(variables, images)[:1], rtol=1e-4, atol=1e-5)


def test_unknown_names():
    with pytest.raises(RecipeError, match="unknown model 'vgg'; choose one of mlp, lenet"):
        model("vgg", 10)
    with pytest.raises(RecipeError, match="unknown norm 'layer'; choose one of group, batch"):
        model("conv", 10, "layer")
