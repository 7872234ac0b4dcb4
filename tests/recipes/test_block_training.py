"""Blocks beside masks of single weights: what is kept, and what trains."""

import jax
import numpy as np
import pytest

import jaxprune as jp
from recipes import block_training
from recipes.common import arms, data, lanes, models


def test_each_arm_keeps_whole_blocks_and_as_many_for_each_block_of_outputs(finished):
    # Dense_0 is 64 x 32: of 8 blocks of inputs 2 stay, and of 64 single inputs 16
    for name, h, w, kept in (("static 8x8", 8, 8, 2), ("rigl 1x16", 1, 16, 16)):
        params, _, masks = finished.model(name.replace(" ", "-"))
        mask = np.asarray(masks["Dense_0"]["kernel"])
        blocks = mask.reshape(2, 64 // h, h, 32 // w, w)
        assert (blocks.all((2, 4)) == blocks.any((2, 4))).all()
        np.testing.assert_array_equal(blocks.any((2, 4)).sum(1), kept)
        assert not params["Dense_0"]["kernel"][~mask].any()
        assert masks["Dense_2"]["kernel"] is None  # the last layer stays dense
    numbers = finished.summary["arms"]
    assert numbers["static 8x8"]["kept_weights"] == [64 * 8 + 8 * 16] * 2
    assert numbers["dense"]["times_as_fast"] == 1.0


def test_masks_move_in_rigl_only(finished):
    last = finished.records[-1]
    assert last["static 8x8"]["overlap_first"] == [1.0, 1.0]
    assert max(last["rigl 1x16"]["overlap_first"]) < 1


@pytest.mark.parametrize("name", ["static 8x8", "rigl 1x16"])
def test_an_arm_in_blocks_learns_like_the_same_masks_in_a_dense_network(name):
    digits = data.load("digits")
    sizes = ("8x8", "1x16")
    config = block_training.Config(hidden=(32, 16), blocks=sizes, every=3, sparsity=0.75)
    arm = block_training.arms(config, digits, 12)[name]
    masked = arm._replace(
        optimizer=lambda key: jp.sparsify(arm.optimizer, arm.blocks.masks(key)), blocks=None
    )
    keys, found = lanes.seed_keys(0, 1), []
    for each in (arm, masked):
        p = arms.program_of(each, digits.train, 64, 6)
        state = arms.begin(each, keys, digits.train.images)
        points = list(lanes.advance(p, state, arms.seeds_of(keys), 12))
        found.append((points[-1].metrics["loss"], arms.network(each, points[-1].state)))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-4)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, found[0][1], found[1][1])


def test_one_weight_stays_in_each_row_of_blocks():
    assert [block_training.pruned(n, 0.9) for n in (1, 2, 8, 32)] == [0, 1, 7, 29]
    module = models.MLP((32, 16), 10)
    params = module.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    blocks = block_training.in_blocks(
        block_training.Config(),
        block_training.transforms(block_training.Config(), "static", 10),
        *(64, 16, jp.matching("*/kernel", exclude="Dense_2/*")),
    )
    assert blocks.slots(params) == {"Dense_0/kernel": 1, "Dense_1/kernel": 1}
    state = jp.fast.block_training(
        lambda p: 0.0, block_training.optax.sgd(0.1), blocks.masks(jax.random.key(0))
    ).init(params)
    assert jp.fast.slots_of(state) == blocks.slots(params)
