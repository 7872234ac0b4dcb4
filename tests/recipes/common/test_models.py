"""The networks: shapes, sizes, and batch norm's running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes.common.folder import RecipeError
from recipes.common.models import FIRST_LAST, decoder, model, vit


def parameters(module, image):
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


def test_lenet_300_100_has_its_266610_parameters():
    assert parameters(model("lenet", 10), jnp.zeros((1, 28, 28, 1))) == 266_610


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_resnet20_has_272474_parameters(norm):
    # 269,722 of the paper's (no projections), and two projections with their norms
    assert parameters(model("resnet20", 10, norm), jnp.zeros((1, 32, 32, 3))) == 272_474


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet20", "vit"])
def test_logits(name):
    module = model(name, 7)
    images = jnp.zeros((3, 8, 8, 1))
    logits, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert logits.shape == (3, 7)
    assert "batch_stats" not in variables


@pytest.mark.full
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
    assert first[-2] in (1, 4, 64)  # a pixel, a patch of 2 x 2, an image
    assert last[-1] == 7


def test_a_vit_has_its_size_by_the_image_and_its_width():
    count = lambda image, **how: parameters(model("vit", 10, **how), jnp.zeros((1, *image)))
    per_block = 4 * 48 * 48 + 3 * 48 * 128 + 2 * 48
    assert count((8, 8, 1)) == 2 * per_block + 5 * 48 + 16 * 48 + 48 + 49 * 10
    assert count((8, 8, 1), width=1 / 3) < count((8, 8, 1)) < count((32, 32, 3)) == 418_186
    with pytest.raises(RecipeError, match="patches of 4 x 4; got images of 30 x 32"):
        count((30, 32, 3))


@pytest.mark.full
def test_a_vit_sees_all_patches_from_each_and_where_they_are():
    images = jax.random.normal(jax.random.key(0), (1, 4, 8, 1))
    cut = vit.patches(images, 2)
    np.testing.assert_array_equal(cut[0, 5], images[0, 2:4, 2:4].ravel())
    block = decoder.Block(vit.SIZES["tiny"])
    x = jax.random.normal(jax.random.key(1), (1, 3, 48))
    variables = block.init(jax.random.key(2), x)
    change = lambda x: block.apply(variables, x) - block.apply(variables, x.at[0, 2].add(1))
    assert float(jnp.abs(change(x)[0, 0]).max()) > 1e-3  # the last is seen by the first
    module = model("vit", 10)
    images = jax.random.normal(jax.random.key(3), (1, 8, 8, 1))
    params = module.init(jax.random.key(4), images)
    assert (
        float(jnp.abs(module.apply(params, images) - module.apply(params, images[:, ::-1])).max())
        > 1e-4
    )


def test_unknown_names():
    with pytest.raises(RecipeError, match="unknown model 'vgg'; choose one of mlp, lenet"):
        model("vgg", 10)
    with pytest.raises(RecipeError, match="unknown norm 'layer'; choose one of group, batch"):
        model("conv", 10, "layer")
