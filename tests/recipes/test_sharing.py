"""What is stored is equal, and a folded network has no more values than shared numbers."""

import jax
import numpy as np
import pytest

import jaxprune as jp
from recipes.common import data
from recipes.random_erk import weights
from recipes.reports.sharing import entropy
from recipes.sharing import Config, small


def test_places_take_the_entropy_of_the_mask():
    assert entropy(50, 100) == 100 and entropy(100, 100) == 0
    assert entropy(1, 1024) == 12  # log2 of the places, and a little for the others


@pytest.mark.full
def test_a_narrow_network_has_as_many_weights_as_fit():
    dataset = data.load("digits")
    one = data.Split(*(x[:1] for x in dataset.train))
    narrow = small(Config(), dataset, 10)
    assert 0.95 * 50_432 / 10 < weights(narrow, one) <= 50_432 / 10
    assert small(Config(), dataset, 1000) is None  # one neuron a layer has 75


@pytest.mark.full
def test_all_methods_store_as_many_numbers(run):
    done = run("sharing")
    arms = done.summary["arms"]
    n = arms["dense"]["weights"]
    assert set(arms) == {"dense", *(f"{m} 4x" for m in done.config.method)}
    for method in done.config.method:
        own = arms[f"{method} 4x"]
        slack = 3 if method != "small_dense" else n / 40  # scales; a neuron more or less
        assert abs(own["stored"] - n / 4) <= slack
        has_places = method not in ("random_fold", "small_dense")
        assert (own["bits"] > 32 * own["stored"]) == has_places


@pytest.mark.full
def test_weights_that_share_differ_by_sign_and_scale_only(run):
    done = run("sharing")
    params, _, _ = done.model("random_fold-4x")
    for seed in range(2):
        values = [np.abs(np.asarray(w)[seed]).ravel() for w in jax.tree.leaves(jp.kernels(params))]
        stored = done.summary["arms"]["random_fold 4x"]["stored"] - len(values)
        largest = values[0]  # more weights than numbers: all of them are here
        assert len(np.unique(largest)) <= stored < largest.size
