"""Kept neurons as masks, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.coupling.networks import NETWORKS, built
from tests.coupling.test_analyze import weights
from tests.coupling.test_stated import raised
from tests.structured.test_compact import some

PARAMS = weights(a=(4, 6), b=(6, 2)) | {"head": {"bias": jnp.zeros(2)}}
FN = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] + p["head"]["bias"][None]
STRUCTURE = jp.analyze(FN, PARAMS, jnp.ones((2, 4)))


def test_masks():
    masks = jp.structured.masks(STRUCTURE, {"a": jnp.array([1, 0, 1, 1, 0, 1], bool)})
    assert masks["a"].tolist() == [[True, False, True, True, False, True]] * 4
    assert masks["b"].tolist() == [[k] * 2 for k in (True, False, True, True, False, True)]
    assert masks["head"]["bias"] is None
    assert all(m.all() for m in jax.tree.leaves(jp.structured.masks(STRUCTURE, {})))
    under_jit = jax.jit(lambda own: jp.structured.masks(STRUCTURE, {"a": own}))(masks["a"][0])
    jax.tree.map(np.testing.assert_array_equal, under_jit, masks)


@pytest.mark.parametrize("name", ["concat", "separable", "lstm"])
def test_kept_neurons_is_the_inverse(name):
    variables, x = built(name)
    structure = jp.analyze(NETWORKS[name].module.apply, variables, x)
    kept = some(structure, seed=3)
    back = jp.structured.kept(structure, jp.structured.masks(structure, kept))
    jax.tree.map(np.testing.assert_array_equal, back, kept)


def test_a_neuron_of_which_anything_is_kept_is_kept():
    masks = jp.structured.masks(STRUCTURE, {})
    masks["a"] = masks["a"].at[:, :3].set(False)  # the outputs of three, but not what reads them
    assert jp.structured.kept(STRUCTURE, masks)["a"].all()
    masks["b"] = masks["b"].at[1:3].set(False)
    assert jp.structured.kept(STRUCTURE, masks)["a"].tolist() == [True, False, False, *[True] * 3]


@pytest.mark.parametrize(
    ("kept", "kind", "fragment"),
    [
        (np.ones(6, bool), TypeError, "maps names of groups to bool arrays"),
        ({"c": np.ones(6, bool)}, ValueError, "there is no group 'c'; the groups are 'a'."),
        ({"a": np.arange(6)}, TypeError, "is a bool array of shape (6,), True = kept; got int64"),
        ({"a": np.ones(5, bool)}, ValueError, "group 'a' has shape (5,), its neurons are (6,)"),
        ({"a": np.zeros(6, bool)}, ValueError, "no neuron of group 'a', and with it no path"),
    ],
)
def test_bad_input(kept, kind, fragment):
    assert fragment in raised(lambda: jp.structured.masks(STRUCTURE, kept), kind)
    assert fragment in raised(lambda: jp.compact(STRUCTURE, PARAMS, kept), kind)
