"""How children differ, and what is one program, one mask and one ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes.common import models, soups, training
from recipes.common.data import Split
from recipes.common.training import Arm

KEYS = training.seed_keys(0, 2)
HOW = soups.Retraining(KEYS, peak=0.1, weight_decay=1e-4, steps=8, table=40)
MODULE = models.model("mlp", 10, width=0.125)
IMAGES = np.random.default_rng(0).normal(size=(50, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize("vary", soups.VARIATIONS)
def test_children_differ_in_one_thing(vary):
    lanes, longest = soups.variations(HOW, vary, 3)
    rates, decays = np.asarray(lanes.rates), np.asarray(lanes.weight_decay)
    assert rates.shape == (3, 40)
    assert longest == (12 if vary == "length" else 8)
    factors = {name: np.ones(3) for name in soups.VARIATIONS} | {vary: [0.5, 1, 1.5]}
    assert decays == pytest.approx(1e-4 * np.asarray(factors["weight_decay"]))
    # a rate rises from 0 in the first step, and is 0 behind the last
    assert (rates > 0).sum(1).tolist() == [round(8 * f) - 1 for f in factors["length"]]
    if vary != "length":
        assert rates.max(1) / rates.max(1)[1] == pytest.approx(factors["learning_rate"])
    keys = jax.random.key_data(soups.order_keys(HOW, vary, 1, 3)).tolist()
    assert len({str(key) for seed in keys for key in seed}) == (6 if vary == "order" else 2)


def test_every_phase_has_its_own_order():
    first, second = (soups.order_keys(HOW, "length", phase, 3) for phase in (1, 2))
    assert (first != second).all()


def test_initial_networks_are_those_of_the_other_recipes():
    made = soups.initial(MODULE, KEYS, IMAGES[:1])
    dense = Arm(MODULE, lambda key: optax.sgd(0.1))
    theirs = training.init(dense, KEYS, IMAGES)
    jax.tree.map(np.testing.assert_array_equal, made.variables["params"], theirs.params)
    assert float(jp.sparsity(made.masks)) == 0


def test_what_is_pruned_stays_pruned_whatever_is_left():
    made = soups.prune(soups.initial(MODULE, KEYS, IMAGES[:1]), jnp.float32(0.5))
    nothing = jax.tree.map(jnp.zeros_like, made.variables)  # all weights tie
    again = soups.prune(soups.Networks(nothing, made.masks), jnp.float32(0.75))
    assert jax.vmap(jp.sparsity)(again.masks) == pytest.approx([0.75, 0.75])
    for before, after in zip(*map(jax.tree.leaves, (made.masks, again.masks)), strict=True):
        assert not (after & ~before).any()


def test_an_ensemble_is_the_mean_of_probabilities():
    variables = soups.initial(MODULE, training.seed_keys(0, 6), IMAGES[:1]).variables
    labels = np.random.default_rng(1).integers(0, 10, 50).astype(np.int32)
    probabilities = jax.nn.softmax(
        jax.vmap(lambda params: MODULE.apply({"params": params}, IMAGES))(variables["params"])
    )
    mean = np.asarray(probabilities).reshape(2, 3, 50, 10).mean(1)
    expected = (mean.argmax(-1) == labels).mean(1)
    together = soups.ensemble_accuracy(MODULE, Split(IMAGES, labels))
    assert together(*soups.parts(soups.families(variables, 3))) == pytest.approx(expected)
