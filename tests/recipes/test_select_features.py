"""Chosen inputs: those of the highest strength, and trees that see no others."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import select_features
from recipes.common import data, settings
from recipes.select_features import Config, Study


def test_trees_see_the_chosen_inputs_alone():
    """One input has the answer; the others are noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200).astype(np.int32)
    images = rng.standard_normal((200, 2, 2, 1), np.float32)
    images[:, 1, 0, 0] = labels
    split = data.Split(images, labels)
    given = data.Dataset(split, split._replace(images=images[::-1], labels=labels[::-1]), 2, 0, 1)
    study = Study(Config(), given, settings.plan_of(Config(steps=2), 200))
    assert select_features.told_apart(study, np.array([2]), 0) == 1
    held = given._replace(test=data.Split(rng.standard_normal((200, 2, 2, 1)), labels))
    assert select_features.told_apart(study._replace(dataset=held), np.array([1]), 0) < 0.7


@pytest.mark.full
def test_what_is_chosen_has_the_highest_strength(finished):
    arms = finished.summary["arms"]
    assert list(arms) == list(select_features.METHODS)
    for method in ("set", "dense"):
        params, _, masks = finished.model(f"{method}-autoencoder")
        for kernel, chosen in zip(
            params["encoder"]["kernel"], arms[method]["features"], strict=True
        ):
            strength = np.asarray(jp.analysis.input_strength(jnp.asarray(kernel)))
            assert len(set(chosen)) == 20
            assert strength[chosen].min() >= np.delete(strength, chosen).max()
        kept = np.mean(
            [np.mean(m) for m in (masks["encoder"]["kernel"], masks["decoder"]["kernel"])]
        )
        assert kept == pytest.approx(0.1 if method == "set" else 1, abs=0.001)
    assert arms["variance"]["features"][0] == arms["variance"]["features"][1]
    assert arms["random"]["features"][0] != arms["random"]["features"][1]
