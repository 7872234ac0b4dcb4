"""The networks: shapes, sizes, and batch norm's running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes.common.folder import RecipeError
from recipes.common.models import FIRST_LAST, model


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


def test_widths_are_what_their_normalisation_accepts():
    shapes = jax.eval_shape(
        model("conv", 10, width=1.3).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))
    )["params"]
    assert [shapes[f"Conv_{i}"]["kernel"].shape[-1] for i in range(3)] == [40, 80, 80]
    assert parameters(model("lenet", 10, width=0.01), jnp.zeros((1, 28, 28, 1))) == 2379
    assert model("resnet20", 10, width=0.1).widths == (8, 8, 8)


@pytest.mark.parametrize("name", FIRST_LAST)
def test_first_and_last_layer(name):
    image = jnp.zeros((1, 8, 8, 1))
    params = jax.eval_shape(model(name, 7).init, jax.random.key(0), image)["params"]
    first, last = (params[path.split("/")[0]]["kernel"].shape for path in FIRST_LAST[name])
    assert first[-2] in (1, 64)
    assert last[-1] == 7


def test_unknown_names():
    with pytest.raises(RecipeError, match="unknown model 'vgg'; choose one of mlp, lenet"):
        model("vgg", 10)
    with pytest.raises(RecipeError, match="unknown norm 'layer'; choose one of group, batch"):
        model("conv", 10, "layer")
