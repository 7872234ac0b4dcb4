"""Which neurons a stage cuts: thresholds, budgets, and branches that lose all of theirs."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.structured import Removal, cut, required_groups
from tests.coupling.networks import NETWORKS, built
from tests.coupling.test_analyze import weights

GATES = {"a": np.array([0.99, 0.73, 0.12, 0.01]), "b": np.array([0.6, 0.2, 0.3, 0.02])}
ALL = {name: np.ones(4, bool) for name in GATES}


@pytest.fixture(scope="module")
def structure():
    """3 -> 4 -> 4 -> 2."""
    fn = lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]
    return jp.analyze(fn, weights(a=(3, 4), b=(4, 4), c=(4, 2)), jnp.ones((1, 3)))


@pytest.fixture(scope="module")
def residual():
    """A stem, and a branch that adds to its stream."""
    variables, x = built("batch norm")
    return jp.analyze(NETWORKS["batch norm"].module.apply, variables, x)


def sizes(removal):
    return [int(own.sum()) for own in removal.kept.values()]


@pytest.mark.parametrize(
    ("threshold", "left"), [(0.005, [4, 4]), (0.02, [3, 3]), (0.25, [2, 2]), (0.7, [2, 1])]
)
def test_what_is_above_the_threshold_is_kept(structure, threshold, left):
    found = cut(structure, GATES, threshold, ALL)
    assert sizes(found) == left and found.removed == ()
    assert found.kept["a"][:2].all() and found.kept["b"][0]  # the strongest, whatever it is


def test_what_is_cut_stays_cut(structure):
    before = Removal({"a": np.array([False, True, True, True]), "b": ALL["b"]}, ())
    assert not cut(structure, GATES, 0.01, before).kept["a"][0]
    assert sizes(cut(structure, GATES, 0.01, before)) == [2, 4]
    assert sizes(cut(structure, GATES, 0.01, before, flops=0.9)) == [3, 4]  # it is below


def test_nothing_is_cut_below_the_budget(structure):
    share = lambda found: (
        jp.structured.cost(structure, found.kept).flops / jp.structured.cost(structure).flops
    )
    found = cut(structure, GATES, 0.7, ALL, flops=0.5)
    assert sizes(found) == [2, 3] and share(found) == 18 / 36
    assert sizes(cut(structure, GATES, 0.015, ALL, flops=0.5)) == [3, 4]  # the threshold is


def test_the_last_cut_comes_down_to_the_budget(structure):
    assert sizes(cut(structure, GATES, 0.001, ALL, flops=0.5, exact=True)) == [2, 3]
    assert sizes(cut(structure, GATES, 0.001, ALL, flops=0.01, exact=True)) == [1, 1]


def test_groups_that_no_path_leads_around_are_required(structure, residual):
    assert required_groups(structure) == ["a", "b"]
    assert required_groups(residual) == ["params/Conv_0"]


def test_a_branch_without_neurons_is_removed(residual):
    gates = {"params/Conv_0": np.full(8, 0.9), "params/Conv_1": np.full(4, 0.1)}
    every = {name: np.ones(len(own), bool) for name, own in gates.items()}
    found = cut(residual, gates, 0.2, every, never_empty=required_groups(residual))
    assert sizes(found) == [8, 0]
    assert {path.split("/")[1] for path in found.removed} == {
        "Conv_1", "BatchNorm_1", "Conv_2", "BatchNorm_2"
    }  # fmt: skip
    assert sizes(cut(residual, gates, 0.2, every)) == [8, 1]


def test_two_branches_may_each_go_but_not_both():
    params = weights(a=(3, 4), b=(3, 4), c=(4, 2), d=(4, 2))
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["c"] + jnp.tanh(x @ p["b"]) @ p["d"]
    structure = jp.analyze(fn, params, jnp.ones((1, 3)))
    assert required_groups(structure) == []
    gates = {"a": np.array([0.1, 0.2, 0.0, 0.0]), "b": np.zeros(4)}
    found = cut(structure, gates, 0.5, ALL, never_empty=[])
    assert sizes(found) == [1, 1] and found.kept["a"][1]
    alone = Removal({"a": ALL["a"], "b": np.zeros(4, bool)}, ("b", "d"))
    found = cut(structure, gates, 0.5, alone, never_empty=[])
    assert sizes(found) == [1, 0] and found.removed == ("b", "d")
