"""Random pruning: equal weights, ratios of layers, and widths."""

import jax
import numpy as np
import pytest

import jaxprune as jp
from recipes import random_erk
from recipes.common import arms as ways
from recipes.common import data, lanes, models
from tests.recipes import running

WEIGHTS = 64 * 256 + 256 * 128 + 128 * 10


@pytest.mark.full
def test_all_allocations_keep_as_many_weights(finished):
    assert list(finished.summary["arms"]) == ["dense", *random_erk.ALLOCATIONS]
    for allocation in random_erk.ALLOCATIONS:
        kept = finished.summary["arms"][allocation]["kept_weights"]
        assert kept == pytest.approx([0.4 * WEIGHTS] * 2, abs=2)
    assert not (finished.out / "plots" / "widths.png").exists()


@pytest.mark.full
def test_each_allocation_has_its_ratios(finished):
    density = {}
    for allocation in random_erk.ALLOCATIONS:
        _, _, masks = finished.model(allocation)
        density[allocation] = [
            np.mean(masks[f"Dense_{i}"]["kernel"], axis=(1, 2)) for i in range(3)
        ]
    np.testing.assert_allclose(density["uniform"], 0.4, atol=1e-3)
    np.testing.assert_allclose(density["uniform_plus"][0], 1)
    np.testing.assert_allclose(density["erk_plus"][2], 1)
    assert density["erk"][0][0] > density["erk"][1][0]
    snip = np.stack(density["snip"])
    assert (snip[:, 0] != snip[:, 1]).any()  # each seed asks its own weights


@pytest.mark.full
def test_masks_are_there_before_the_first_step_and_stay(finished):
    for record in finished.records:
        for allocation in random_erk.ALLOCATIONS:
            assert record[allocation]["sparsity"] == pytest.approx([0.6, 0.6], abs=1e-4)
            assert record[allocation]["overlap_first"] == [1, 1]


@pytest.mark.full
def test_snip_s_ratios_are_those_of_its_criterion():
    config = random_erk.Config(allocation=("snip",), sparsity=0.9, batch_size=32)
    digits = data.load("digits", train_examples=64)
    arm = random_erk.arms(config, digits, 10)["snip"]
    dense = random_erk.arms(config, digits, 10)["dense"]
    keys = lanes.seed_keys(0, 1)
    masks = jp.get_masks(ways.begin(arm, keys, digits.train.images).opt_state)
    state = ways.begin(dense, keys, digits.train.images)
    params = jax.tree.map(lambda x: x[0], state.params)
    batch = digits.train.images[:32], digits.train.labels[:32]
    loss = lambda params: models.classification(arm.module)(params, {}, *batch)[0]
    scores = jp.saliency(jp.kernels(params), grads=jax.grad(loss)(params))
    chosen = jp.select(scores, jp.global_threshold, 0.9)
    for layer in ("Dense_0", "Dense_1", "Dense_2"):
        at_random, by_score = masks[layer]["kernel"][0], chosen[layer]["kernel"]
        assert abs(int(at_random.sum()) - int(by_score.sum())) <= 1
        assert (at_random != by_score).any()


@pytest.mark.full
def test_widths_keep_equally_many_weights(tmp_path):
    wide = running.varied(
        "random_erk", "--allocation erk --widths 1 2 --sparsity 0.95", tmp_path / "wide"
    )
    numbers = wide.summary["arms"]
    assert list(numbers) == [f"{arm} x{w}" for w in ("1", "2") for arm in ("dense", "erk")]
    kept = [numbers[f"erk x{width}"]["kept_weights"] for width in ("1", "2")]
    np.testing.assert_allclose(kept, WEIGHTS - round(0.95 * WEIGHTS), atol=2)
    sizes = [numbers[f"erk x{width}"]["prunable_weights"] for width in ("1", "2")]
    assert sizes == [WEIGHTS, 64 * 512 + 512 * 256 + 256 * 10]
    assert (wide.out / "plots" / "widths.png").read_bytes().startswith(b"\x89PNG")
    for width in ("1", "2"):
        erk, dense = numbers[f"erk x{width}"], numbers[f"dense x{width}"]
        assert erk["accuracy_minus_dense"]["mean"] == pytest.approx(
            erk["test_accuracy"]["mean"] - dense["test_accuracy"]["mean"]
        )
    params, _, _ = wide.model("erk-x2")
    assert params["Dense_0"]["kernel"].shape == (2, 64, 512)


@pytest.mark.full
def test_widths_of_equal_sparsity():
    config = random_erk.Config(allocation=("erk",), widths=(1.0, 2.0), equal="sparsity")
    digits = data.load("digits", train_examples=64)
    for name, arm in random_erk.arms(config, digits, 10).items():
        if name.startswith("erk"):
            state = ways.begin(arm, lanes.seed_keys(0, 1), digits.train.images)
            assert jp.sparsity(jp.get_masks(state.opt_state)) == pytest.approx(0.95, abs=1e-4)


@pytest.mark.full
def test_a_convolutional_network_with_batch_norm(tmp_path):
    flags = "--model conv --norm batch --allocation snip --widths 0.5 --sparsity 0.9"
    _, batch_stats, _ = running.varied("random_erk", flags, tmp_path / "conv").model("snip")
    assert batch_stats["BatchNorm_0"]["mean"].shape == (2, 16)
