"""Masks from distilled images: whose masks they are, and what is counted."""

import jax
import numpy as np
import pytest

import jaxprune as jp
from recipes import distilled_pruning
from recipes.common import curvature, data, lanes, sets
from tests.recipes import running

SIZES = "--seeds 2 --steps 8 --log-every 4 --rate 0.4 --points 3 --plane 3 --probes 0"


def test_rounds_lead_from_one_sparsity_to_the_next_by_about_the_rate():
    config = distilled_pruning.Config(sparsities=(0.36, 0.9), rate=0.2)
    after, measured = distilled_pruning.targets(config)
    assert measured == [2, 10]
    np.testing.assert_allclose(after[:2], [0.2, 0.36])
    shares = 1 - np.divide(1 - np.array(after[2:]), 1 - np.array(after[1:-1]))
    np.testing.assert_allclose(shares, 1 - (0.1 / 0.64) ** (1 / 8))
    assert after[-1] == 0.9


@pytest.mark.full
def test_the_training_set_in_place_of_a_distilled_set_gives_the_masks_of_imp(tmp_path):
    digits = data.load("digits", train_examples=60)
    alike = lambda x: np.stack([x, x])
    np.savez(
        tmp_path / sets.FILE,
        images=alike(digits.train.images),
        labels=digits.train.labels,
        mean=digits.mean,
        std=digits.std,
        dataset="digits",
    )
    flags = (
        f"{SIZES} --train-examples 60 --batch-size 16 --sparsities 0.5 0.8 --width 0.25"
        f" --examples 20 --method imp distilled --augment none --distilled {tmp_path}"
    )
    out = tmp_path / "run"
    distilled_pruning.main([*flags.split(), "--out", str(out)])
    judged = running.records(out)[-1]["arms"]
    assert judged["distilled 6"]["overlap_with_imp"] == [1.0, 1.0]
    assert judged["distilled 6"] == judged["imp"]


@pytest.mark.full
def test_what_a_finished_run_has(run):
    """Masks of later rounds lie in earlier ones; counts of images, and of the Hessian's entries."""
    finished = run("distilled_pruning")
    summary = finished.summary
    assert summary["sparsity_by_round"] == pytest.approx([0.5, 0.75])
    of = {arm: each[-1] for arm, each in summary["arms"].items()}
    # 2 rounds of 8 steps of 128; the second of rewound has 5; sets of 20 images 6 steps of 20
    assert of["imp"]["images"] == 2 * 8 * 128
    assert of["rewound"]["images"] == (8 + 5) * 128
    assert of["distilled 2"]["images"] == of["real 2"]["images"] == 2 * 6 * 20
    assert of["chained"]["images"] == 6 * 20 + 8 * 128
    assert of["shuffled"]["images"] == of["erk"]["images"] == 0
    overlap = lambda arm: summary["arms"][arm][0]["overlap_with_imp"]
    assert overlap("chained") == overlap("distilled 2")
    masks = {arm: finished.model(arm)[2] for arm in of}
    for arm in of:
        assert jax.vmap(jp.sparsity)(masks[arm]) == pytest.approx([0.75, 0.75], abs=1e-3)
    counts = lambda arm: [m.reshape(2, -1).sum(1).tolist() for m in jax.tree.leaves(masks[arm])]
    assert counts("shuffled") == counts("imp")
    last = finished.records[-1]["arms"]["imp"]["start"]
    weights = 64 * 256 + 256 * 128 + 128 * 10
    assert sum(last["sizes_kept"]) == 2 * (weights - round(0.75 * weights))
    assert sum(last["sizes_kept"]) + sum(last["sizes_pruned"]) == 2 * weights


@pytest.mark.full
def test_curvature_by_hand():
    # loss = 1/2 (a^2 + 4 b^2 + 9 c^2): of kept a and c the largest eigenvalue is 9, the trace 10
    scale = np.array([1.0, 4.0, 9.0], np.float32)
    loss = lambda params: 0.5 * (scale * params["w"] ** 2).sum()
    params, masks = {"w": np.ones((1, 3), np.float32)}, {"w": np.array([[True, False, True]])}
    keys = lanes.seed_keys(0, 1)
    told = curvature.of_stack(keys, loss, 2, lanes.Network(params, {}, masks), params)
    assert told["largest_eigenvalue"] == pytest.approx([9])
    assert told["trace_per_weight"] == pytest.approx([5])
    assert told["diagonal_kept"] == pytest.approx([5])
    assert told["diagonal_pruned"] == pytest.approx([4])
    assert sum(told["sizes_kept"]) == 2 and sum(told["sizes_pruned"]) == 1
    i = np.searchsorted(curvature.BINS, 4.0) - 1
    assert told["sizes_pruned"][i] == 1
