"""A ticket is the network without some blocks, with the first weights of the others."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxprune as jp
from recipes.common import lanes
from recipes.common.models.residual import Residual
from recipes.layers import Cell, Config, network_of, shallower, study_of, survivors
from recipes.reports.layers import wins
from tests.quick import quick

HOW: dict[str, Any] = {"seeds": 2, "blocks": 3, "steps": 4, "batch_size": 32, "width": 0.125}


def test_the_highest_stay_in_their_order():
    scores = np.array([[0.5, 0.1, 0.9], [1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(survivors(scores, 1), [[0, 2], [0, 1]])
    np.testing.assert_array_equal(survivors(scores, 2), [[2], [0]])


@pytest.mark.parametrize("dataset", quick(["digits", "names"], "digits"))
def test_a_shallower_network_is_the_one_whose_blocks_are_removed(dataset):
    """And the one whose blocks have zeros: each seed without other blocks."""
    config = Config(dataset=dataset, blocks=3, width=0.25)
    whole, small = (network_of(config, 10, blocks) for blocks in (3, 2))
    x = np.ones((2, 4, 4, 1), np.float32) if dataset == "digits" else np.ones((2, 5), np.uint8)
    params = jax.vmap(lambda key: whole.init(key, x))(lanes.seed_keys(0, 2))["params"]
    chosen = shallower(params, np.array([[0, 2], [1, 2]]))
    for seed, gone in enumerate(("block_1", "block_0")):
        own, left = (
            {"params": jax.tree.map(lambda w, seed=seed: w[seed], p)} for p in (params, chosen)
        )
        structure = jp.analyze(whole.apply, own, x)
        removal = jp.structured.remove_blocks(structure, [gone])
        compact = jp.compact(structure, own, removal)
        outputs = small.apply(left, x)
        np.testing.assert_allclose(outputs, compact.fn(compact.params, x), rtol=1e-4, atol=1e-5)
        zero = {
            name: jax.tree.map(lambda w: 0 * w, sub) if name == gone else sub
            for name, sub in own["params"].items()
        }
        np.testing.assert_allclose(outputs, whole.apply({"params": zero}, x), rtol=1e-4, atol=1e-5)


def test_each_block_of_the_residual_network_can_go():
    x = np.ones((2, 4, 4, 1), np.float32)
    variables = Residual(3, 8, 10).init(jax.random.key(0), x)
    structure = jp.analyze(Residual(3, 8, 10).apply, variables, x)
    names = [f"block_{i}" for i in range(3)]
    assert jp.structured.removable_blocks(structure, names) == names


@pytest.mark.full
def test_scores_are_sums_over_the_weights_of_a_block():
    s = study_of(Config(**HOW, removed=(1,), examples=16, train_examples=128))
    params = lanes.initial(s.programs[3], s.keys).params
    magnitude = np.asarray(s.scorers["magnitude"](s.keys, params))
    block = params["block_1"]
    wanted = sum(np.abs(block[name]["kernel"]).sum((1, 2)) for name in ("up", "down"))
    np.testing.assert_allclose(magnitude[:, 1], wanted, rtol=1e-5)
    for method in ("snip", "grasp", "random"):
        scores = np.asarray(s.scorers[method](s.keys, params))
        assert scores.shape == (2, 3) and np.isfinite(scores).all()
        assert (scores[0] != scores[1]).any()


def test_arms_and_the_tickets_that_win():
    assert Cell("snip", "init", 2).arm == "snip, init" and Cell("random", "init", 2).arm == "random"
    arm = {str(left): {"test_accuracy": {"mean": mean}} for left, mean in ((6, 0.9), (4, 0.8))}
    assert wins(arm, 0.902, 0.5) == 6 and wins(arm, 0.803, 0.5) == 4
    assert wins(arm, 0.95, 0.5) is None


@pytest.mark.full
def test_random_tickets_do_not_depend_on_the_weights(run):
    done = run("layers")
    cells = [r["cell"] for r in done.records]
    assert cells[0] is None and cells[1:] == [
        ["snip", "init", 1],
        ["snip", "init", 2],
        ["snip", "trained", 1],
        ["snip", "trained", 2],
        ["random", "init", 1],
        ["random", "init", 2],
    ]
    costs = done.summary["costs"]
    assert [costs[left]["params"] for left in "321"] == sorted(
        (c["params"] for c in costs.values()), reverse=True
    )
    for record in done.records[1:]:
        kept = np.array(record["kept"])
        assert kept.shape == (2, 3 - record["cell"][2])
        order = np.argsort(-np.array(record["scores"]), axis=1, kind="stable")
        np.testing.assert_array_equal(kept, np.sort(order[:, : kept.shape[1]], axis=1))
