"""Blocks beside masks of single weights: what is kept, and what trains."""

import jax
import numpy as np
import pytest

import jaxprune as jp
from recipes import block_training
from recipes.common import arms, data, lanes, models


@pytest.mark.full
def test_each_arm_keeps_whole_blocks_and_as_many_for_each_block_of_outputs(finished):
    # Dense_0 is 64 x 32: of 8 blocks of inputs 2 stay, and of 64 single inputs 16
    for name, h, w, kept in (("static 8x8", 8, 8, 2), ("rigl 8x8", 8, 8, 2), ("gmp 8x8", 8, 8, 2)):
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


@pytest.mark.full
def test_masks_move_in_rigl_only(finished):
    last = finished.records[-1]
    assert last["static 8x8"]["overlap_first"] == [1.0, 1.0]
    assert max(last["rigl 8x8"]["overlap_first"]) < 1


@pytest.mark.full
@pytest.mark.parametrize("name", ["static 8x8", "rigl 1x16", "gmp 8x8"])
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


@pytest.mark.full
def test_one_weight_stays_in_each_row_of_blocks():
    assert [block_training.pruned(n, 0.9) for n in (1, 2, 8, 32)] == [0, 1, 7, 29]
    module = models.MLP((32, 16), 10)
    params = module.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    hidden = jp.matching("*/kernel", exclude="Dense_2/*")
    config = block_training.Config()
    blocks = block_training.in_blocks(config, "static", 10, 64, 16, hidden)
    slots = {"Dense_0/kernel": 1, "Dense_1/kernel": 1}
    assert blocks.slots({"Dense_0/kernel": (64, 32), "Dense_1/kernel": (32, 16)}, 0) == slots
    state = jp.fast.block_training(
        lambda p: 0.0, block_training.optax.sgd(0.1), blocks.masks(jax.random.key(0))
    ).init(params)
    assert jp.fast.slots_of(state) == slots


@pytest.mark.full
def test_the_arrays_of_gradual_pruning_have_room_for_its_masks():
    """Slots for every step, beside the blocks that the masks keep; they fall in five stages."""
    config = block_training.Config(every=10)
    hidden, shapes = jp.matching("*"), {"w": (1000, 4)}
    blocks = block_training.in_blocks(config, "gmp", 200, 4, 4, hidden)
    masks = blocks.masks(jax.random.key(0))
    params = {"w": jax.random.normal(jax.random.key(1), shapes["w"])}
    update, state, room = jax.jit(masks.update), masks.init(params), []
    for step in range(200):
        if step % 10 == 0 or step == 150:  # the only steps with an update
            state = update(state, params, step=step)
        kept = int(state.masks["w"].any(1).sum()) // 4
        room.append(blocks.slots(shapes, step + 1)["w"])
        assert kept <= room[-1] <= 1.6 * kept + 1  # 10 ** (1 / 5)
    assert len(set(room)) == 6 and room == sorted(room, reverse=True)
    assert blocks.slots(shapes, 0) == {"w": 250} and (kept, room[-1]) == (25, 25)
