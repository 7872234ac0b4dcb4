"""Dynamic sparse training: how the masks of each method move."""

import numpy as np
import pytest

import jaxprune as jp
from recipes import dynamic
from recipes.common import arms, data, lanes
from tests.quick import pairs

SPARSE_AT_ONCE = ("static", "set", "rigl", "top_kast")
WEIGHTS = 64 * 256 + 256 * 128 + 128 * 10


@pytest.mark.full
def test_the_summary_has_every_arm(finished):
    summary = finished.summary
    assert list(summary["arms"]) == ["dense", *dynamic.METHODS]
    assert summary["arms"]["dense"]["kept_weights"] == [WEIGHTS, WEIGHTS]
    for method in dynamic.METHODS:
        numbers = summary["arms"][method]
        assert numbers["prunable_weights"] == WEIGHTS
        assert numbers["kept_weights"] == pytest.approx([0.1 * WEIGHTS] * 2, abs=2)
        assert len(numbers["test_accuracy"]["per_seed"]) == 2
        assert 0 <= numbers["overlap_first"]["mean"] <= 1
        assert 0.09 < numbers["ever_active"]["mean"] <= 1


@pytest.mark.full
def test_masks_move_as_the_method_says(finished):
    records = finished.records
    first, last = records[0], records[-1]
    for method in SPARSE_AT_ONCE:  # sparse before the first step
        assert first[method]["sparsity"] == pytest.approx([0.9, 0.9], abs=1e-4)
    for method in ("gmp", "dpf", "granet", "iss"):
        assert first[method]["sparsity"][0] < 0.9
    for method in ("gmp", "dpf", "granet", "iss", "bip"):
        assert last[method]["ever_active"] == [1, 1]
    for record in records:
        assert record["static"]["overlap_first"] == record["static"]["overlap_previous"] == [1, 1]
    for method in ("set", "rigl"):
        assert max(first[method]["overlap_first"]) < 1
        assert first[method]["overlap_first"] == first[method]["overlap_previous"]
        assert last[method]["overlap_previous"] == [1, 1]  # rewiring ended at step 9
        assert np.all(np.diff([record[method]["ever_active"] for record in records], axis=0) >= 0)


@pytest.mark.full
def test_two_seeds_have_different_masks(finished):
    for method in ("static", "set", "rigl", "granet", "gmp", "top_kast", "dpf", "iss", "bip"):
        _, _, masks = finished.model(method)
        mask = masks["Dense_1"]["kernel"]
        assert (mask[0] != mask[1]).any()


@pytest.mark.full
def test_every_model_is_sparse(finished):
    for method in dynamic.METHODS:
        params, _, masks = finished.model(method)
        for layer in ("Dense_0", "Dense_1", "Dense_2"):
            assert not params[layer]["kernel"][~masks[layer]["kernel"]].any()


def trained(steps, of=10, **changes):
    """The states of an arm at first, and after each of so many steps `of` a run."""
    config = dynamic.Config(sparsity=0.9, **changes)
    digits = data.load("digits", train_examples=256)
    arm = dynamic.arms(config, digits, of)[config.method[0]]
    keys = lanes.seed_keys(0, 1)
    states = [arms.begin(arm, keys, digits.train.images)]
    program, lane = arms.program_of(arm, digits.train, 32, 1), arms.seeds_of(keys)
    for point in lanes.advance(program, lanes.copied(states[0]), lane, steps):
        states.append(lanes.copied(point.state))
    return states


@pytest.mark.full
def test_an_update_may_take_the_place_of_a_step():
    for replace, count in ((False, 3), (True, 2)):
        states = trained(3, method=("rigl",), every=10, replace_step=replace)
        adam = states[-1].opt_state.inner_state[0]
        assert adam.count.tolist() == [count]


@pytest.mark.full
def test_top_kast_trains_only_what_it_should():
    before, after = trained(1, method=("top_kast",), backward_sparsity=0.6)
    same = before.params["Dense_1"]["kernel"] == after.params["Dense_1"]["kernel"]
    assert 0.55 < same.mean() < 0.75  # few of the trained have no gradient


@pytest.mark.full
def test_granet_from_sparse_to_sparse():
    states = trained(1, method=("granet",), initial_sparsity=0.5)
    assert jp.sparsity(jp.get_masks(states[0].opt_state)) == pytest.approx(0.5, abs=1e-4)
    kernel = states[0].params["Dense_0"]["kernel"]
    assert (kernel == 0).mean() > 0.3


@pytest.mark.full
def test_a_fraction_of_zero_rewires_nothing():
    states = trained(2, method=("set",), fraction=0.0, every=1)
    assert jp.overlap(*(jp.get_masks(state.opt_state) for state in states[1:])) == 1


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "every"), pairs(["granet", "gmp", "dpf"], [1, 5, 100], "granet", 5)
)
def test_the_final_sparsity_is_reached_whatever_the_cadence(method, every):
    states = trained(8, of=8, method=(method,), every=every)
    *_, before, masks = (jp.get_masks(state.opt_state) for state in states)
    assert jp.sparsity(masks) == pytest.approx(0.9, abs=1e-4)
    if (method, every) == ("granet", 1):  # it rewires while a cadence is left to train in
        assert jp.overlap(before, masks) < 1
