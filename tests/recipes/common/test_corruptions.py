"""Corruptions are the same to the bit on every machine, and do what their names say."""

import hashlib

import jax
import numpy as np
import pytest

from recipes.common.corruptions import CORRUPTIONS, STRENGTHS, corrupted

KEY = jax.random.key(7)
# of four images of 8 x 12 pixels and three channels, at all strengths
GOLDEN = {
    "noise": "94fb6fd1be88cf33",
    "blur": "cdf6e11dcbb8b339",
    "contrast": "220950a2eea87813",
    "brightness": "60dfae3fc5a81baa",
    "pixelation": "aa619fe51445f5e1",
    "rotation": "cec161d12d2247e6",
    "occlusion": "6cfa0317804a1f51",
}


def images():
    n = np.arange(4 * 8 * 12 * 3, dtype=np.int64)
    return ((7 * n * n + 31 * n) % 256).astype(np.uint8).reshape(4, 8, 12, 3)


def test_the_golden_names_are_all_corruptions():
    assert list(GOLDEN) == list(CORRUPTIONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_machine_makes_these_images(name):
    every = [corrupted(name, KEY, images(), s) for s in range(1, STRENGTHS + 1)]
    content = b"".join(x.tobytes() for x in every)
    assert hashlib.sha256(content).hexdigest()[:16] == GOLDEN[name]
    assert all(x.shape == (4, 8, 12, 3) and x.dtype == np.uint8 for x in every)
    moved = [np.abs(x.astype(int) - images()).mean() for x in every]
    assert moved[0] > 0 and moved[-1] > moved[0]
    part = corrupted(name, KEY, images()[:2], 3)  # an image does not depend on its batch
    np.testing.assert_array_equal(part, every[2][:2])


def of(name, image, strength):
    """One gray image (h, w), after a corruption."""
    image = np.asarray(image, np.uint8)
    return corrupted(name, KEY, image[None, :, :, None], strength)[0, :, :, 0]


def test_noise_has_no_drift_and_the_deviation_that_it_says():
    noise = of("noise", np.full((64, 64), 128), 2).astype(int) - 128
    assert abs(noise.mean()) < 1.5 and 38 < noise.std() < 42


def test_blur_of_a_point():
    """One pass of 1/4, 1/2, 1/4 along both axes, at the lowest strength of small images."""
    point = np.zeros((5, 5))
    point[2, 2] = 160
    wanted = np.zeros((5, 5))
    wanted[1:4, 1:4] = [[10, 20, 10], [20, 40, 20], [10, 20, 10]]
    np.testing.assert_array_equal(of("blur", point, 1), wanted)


def test_contrast_and_brightness():
    """The mean is 100; 160 / 256 of the distances -100 and 100 is -62.5 and 62.5, rounded up."""
    np.testing.assert_array_equal(of("contrast", [[0, 200]], 1), [[38, 163]])
    np.testing.assert_array_equal(of("brightness", [[0, 100, 250]], 2), [[51, 151, 255]])


def test_pixelation_averages_cells():
    """Half as many cells along both sides."""
    wanted = [[4, 4, 8, 8], [4, 4, 8, 8], [1, 1, 0, 0], [1, 1, 0, 0]]
    four = [[1, 3, 8, 8], [5, 7, 8, 8], [0, 1, 0, 0], [1, 1, 0, 1]]
    np.testing.assert_array_equal(of("pixelation", four, 2), wanted)


def test_rotation_leaves_the_middle_and_turns_both_ways():
    image = np.zeros((9, 9))
    image[4, 4], image[4, 7] = 255, 200  # a point three pixels to the right
    keys = [jax.random.key(i) for i in range(8)]
    many = np.asarray(image, np.uint8)[None, :, :, None]
    turned = [corrupted("rotation", key, many, 4)[0, :, :, 0] for key in keys]  # 45 degrees
    assert all(x[4, 4] == 255 for x in turned)
    places = {tuple(map(int, np.argwhere(np.where(x == 255, 0, x) > 100)[0])) for x in turned}
    assert places == {(2, 6), (6, 6)}


def test_occlusion_covers_its_share():
    covered = of("occlusion", np.zeros((10, 20)), 3) == 128
    assert covered.sum() == 4 * 8
    assert covered.any(0).sum() == 8 and covered.any(1).sum() == 4


@pytest.mark.parametrize(
    ("name", "strength", "kind", "said"),
    [
        ("fog", 1, np.uint8, "unknown corruption 'fog'; choose one of noise, blur"),
        ("blur", 0, np.uint8, "the strength of a corruption is 1 to 5, got 0"),
        ("blur", 1, np.float32, "corruptions take images uint8"),
    ],
)
def test_mistakes(name, strength, kind, said):
    with pytest.raises(ValueError, match=said):
        corrupted(name, KEY, images().astype(kind), strength)
