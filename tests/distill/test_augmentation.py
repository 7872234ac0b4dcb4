"""Siamese augmentation: one draw for every image, and what each transform does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

KEYS = jax.random.split(jax.random.key(0), 40)
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 8, 2)), jnp.float32)
TRANSFORMS = {
    "color": jp.distill.color(),
    "crop": jp.distill.crop(),
    "cutout": jp.distill.cutout(),
    "flip": jp.distill.flip(),
    "rotate": jp.distill.rotate(),
    "scale": jp.distill.scale(),
    "siamese": jp.distill.siamese(),
}


def several(transform, images=IMAGES):
    """The images under forty draws (40, n, h, w, c)."""
    return np.asarray(jax.jit(jax.vmap(transform, in_axes=(0, None)))(KEYS, images))


@pytest.mark.full
@pytest.mark.parametrize("name", TRANSFORMS)
def test_one_draw_for_all_images_other_draws_by_other_keys(name):
    transform = TRANSFORMS[name]
    twice = several(transform, jnp.concatenate([IMAGES[:1]] * 2))
    np.testing.assert_array_equal(twice[:, 0], twice[:, 1])
    made = several(transform)
    assert made.shape == (40, *IMAGES.shape) and np.isfinite(made).all()
    assert len({image.tobytes() for image in made}) > 1
    np.testing.assert_array_equal(several(transform), made)


@pytest.mark.full
@pytest.mark.parametrize("name", TRANSFORMS)
def test_slopes_reach_the_images(name):
    of = lambda key: jax.grad(lambda x: (TRANSFORMS[name](key, x) ** 2).sum())(IMAGES)
    slopes = jax.vmap(of)(KEYS[:8])
    assert np.isfinite(slopes).all() and (np.abs(slopes) > 0).any((1, 2, 3, 4)).all()


@pytest.mark.full
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays(dtype):
    for transform in TRANSFORMS.values():
        assert transform(KEYS[0], IMAGES.astype(dtype)).dtype == dtype


def test_flip_mirrors_columns_half_of_the_time():
    made = several(TRANSFORMS["flip"])
    mirrored = (made == IMAGES[None, :, :, ::-1]).all((1, 2, 3, 4))
    same = (made == IMAGES[None]).all((1, 2, 3, 4))
    assert (mirrored ^ same).all() and 8 < mirrored.sum() < 32


def test_crop_moves_by_whole_pixels_up_to_the_padding():
    """8 rows and a padding of 1/8: one pixel at most, each of nine places now and then."""
    at = jnp.zeros((1, 8, 8, 1)).at[0, 4, 4, 0].set(1.0)
    places = {tuple(np.argwhere(m)[0, 1:3] - 4) for m in several(TRANSFORMS["crop"], at)}
    assert places == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}


def test_cutout_clears_a_rectangle_of_half_the_size():
    cleared = (several(TRANSFORMS["cutout"], jnp.ones((1, 8, 8, 1))) == 0).sum((1, 2, 3, 4))
    assert cleared.max() == 16 and cleared.min() >= 4  # 4 x 4; what lies outside clears nothing


def test_scale_and_rotation_by_nothing_change_nothing():
    np.testing.assert_allclose(several(jp.distill.scale(1.0))[0], IMAGES, atol=1e-5)
    np.testing.assert_allclose(several(jp.distill.rotate(0.0))[0], IMAGES, atol=1e-5)


def test_a_quarter_turn_of_a_line():
    """Turned by as much as 15 degrees a vertical line leaves its column at the ends, not inside."""
    line = jnp.zeros((1, 9, 9, 1)).at[0, :, 4].set(1.0)
    made = several(TRANSFORMS["rotate"], line)[:, 0, :, :, 0]
    np.testing.assert_allclose(made[:, 4, 4], 1, atol=1e-5)
    assert (made[:, 0, 4] < 0.99).mean() > 0.8


def test_color_of_gray_images_and_of_none():
    """Without contrast, saturation and brightness an image keeps its mean."""
    still = jp.distill.color(brightness=0.0)
    made = several(still, IMAGES)
    np.testing.assert_allclose(
        made.mean((2, 3, 4)), np.broadcast_to(IMAGES.mean((1, 2, 3)), (40, 3)), atol=1e-5
    )
    gray = several(jp.distill.color(0.0, 2.0, 0.5), IMAGES[..., :1])
    factor = gray.std((2, 3, 4)) / np.asarray(IMAGES[..., :1]).std((1, 2, 3))
    assert factor.min() > 0.5 and factor.max() < 1.5  # contrast only: [.5, 1.5]


def test_what_is_no_image_is_refused():
    for images in (jnp.ones((8, 8, 1)), jnp.ones((1, 8, 8, 1), jnp.int32)):
        with pytest.raises(ValueError, match=r"siamese: images are \(n, height"):
            TRANSFORMS["siamese"](KEYS[0], images)
