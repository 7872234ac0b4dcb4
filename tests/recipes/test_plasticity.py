"""Copies are pruned where they should be, and train on as their parents do."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes.common import data, lanes
from recipes.common.lanes import Lane
from recipes.plasticity import Config, pruned, study_of, trained
from tests.recipes.running import Straight

HOW: dict[str, Any] = {"seeds": 2, "steps": 8, "batch_size": 32, "width": 0.25, "log_every": 2}


@pytest.fixture(scope="module")
def study():
    return study_of(Config(**HOW, prunes=3, recover=2), data.load("digits", train_examples=128))


@pytest.fixture(scope="module")
def parents(study):
    first = lanes.initial(study.program, study.keys)
    return lanes.begin(study.program, first, Lane(study.keys))


def test_the_last_copy_ends_with_its_parent(study):
    assert (study.at, study.recover, study.steps) == ([0, 3, 6], 2, 8)
    one = study_of(Config(**HOW, prunes=1), data.load("digits", train_examples=128))
    assert (one.at, one.recover) == ([0], 1)


def test_copies_are_by_rate_and_then_by_seed(parents):
    copies = pruned(parents, (0.5, 0.75), "uniform")
    masks = jp.get_masks(copies.opt_state)
    kept = [int(masks["Dense_0"]["kernel"][i].sum()) for i in range(4)]
    assert kept == [2048, 2048, 1024, 1024]
    for i in range(4):
        kernel, mask = (x["Dense_0"]["kernel"][i] for x in (copies.params, masks))
        parent = np.asarray(parents.params["Dense_0"]["kernel"][i % 2])
        np.testing.assert_array_equal(kernel, np.where(mask, parent, 0))
        assert np.abs(parent[mask]).min() >= np.abs(parent[~mask]).max()


@pytest.mark.full
def test_a_copy_that_keeps_all_weights_is_its_parent(study, parents):
    """It sees the same examples at the same rates; a pruned one stays pruned."""
    kept = Straight()
    parents = trained(study, kept, "a", parents, 0, 3)
    copies = pruned(lanes.copied(parents), (0.0, 0.5), "global")
    copies = trained(study, kept, "b", copies, 3, 5, 2)
    later = trained(study, kept, "c", parents, 3, 5)
    same = lambda a, b: np.testing.assert_allclose(a[:2], b, rtol=1e-4, atol=1e-6)
    jax.tree.map(same, copies.params, later.params)
    masks = jp.get_masks(copies.opt_state)
    assert jp.sparsity(jax.tree.map(lambda m: m[2:], masks)) == pytest.approx(0.5, abs=1e-3)
    held = jax.tree.map(lambda w, m: jnp.all((w == 0) | m), jp.kernels(copies.params), masks)
    assert all(jax.tree.leaves(held))


@pytest.mark.full
def test_the_summary_follows_each_prune(run):
    done = run("plasticity")
    assert [r["step"] for r in done.records] == [0, 4, 8]
    for prune, record in zip(done.summary["prunes"], done.records[:-1], strict=True):
        assert prune["step"] == record["step"]
        for i, rate in enumerate(("50 %", "90 %")):
            after = prune["test_accuracy"][rate]["per_seed"]
            gain = np.subtract(after, prune["before"]["per_seed"]).tolist()
            assert prune["recovered_minus_before"][rate]["per_seed"] == pytest.approx(gain)
            assert record["recovered"][i] == after
    end = done.summary["dense"]["test_accuracy"]["per_seed"]
    assert end == done.records[-1]["test_accuracy"]
