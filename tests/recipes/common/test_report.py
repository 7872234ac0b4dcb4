"""Mean and spread, and what masks keep."""

import jax.numpy as jnp
import numpy as np
import pytest

from recipes.common import folder, report


def test_over_seeds():
    assert report.over_seeds([1.0, 3.0]) == {
        "mean": 2.0,
        "std": pytest.approx(2**0.5),
        "per_seed": [1.0, 3.0],
    }
    assert report.over_seeds([0.5])["std"] == 0.0
    assert report.percent(report.over_seeds([0.97, 0.99])) == "98.00 ± 1.41 %"
    assert report.percent(report.over_seeds([0.97])) == "97.00 %"  # of one there is no deviation


def test_plus_minus():
    assert report.plus_minus({"mean": 0.0123, "error": 0.004}, 2, 100) == "1.23 ± 0.40"
    assert report.plus_minus({"mean": 0.0123, "error": None}, 3) == "0.012"


def test_what_masks_keep():
    kernel = jnp.array([[[True, False], [True, True]], [[False, False], [False, True]]])
    masks = {"Conv_10": {"kernel": kernel, "bias": None}, "Conv_2": {"kernel": ~kernel}}
    kept, weights = report.kept_weights(masks)
    assert kept.tolist() == [4, 4]
    assert weights == 8
    density = report.layer_density(masks)
    assert list(density) == ["Conv_2/kernel", "Conv_10/kernel"]
    np.testing.assert_allclose(density["Conv_10/kernel"], [0.75, 0.25])


def test_memory_and_environment():
    assert report.tree_bytes({"a": jnp.zeros((2, 3)), "mask": jnp.zeros(5, bool)}) == 29
    assert report.peak_memory_bytes() > 1e7
    assert {"python", "jax", "flax", "optax", "device"} <= set(folder.environment())
