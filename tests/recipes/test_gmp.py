"""One network dense and pruned: counts, metrics, and how weights are pruned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import gmp
from recipes.common import arms, checkpoints, data, folder, lanes
from tests.recipes import running


def test_the_summary_is_exact_numbers(finished):
    summary = finished.summary
    weights = 64 * 256 + 256 * 128 + 128 * 10
    kept = weights - round(0.95 * weights)
    assert summary["prunable_weights"] == weights
    assert summary["kept_weights"] == [kept, kept]
    assert summary["sparsity"] == (weights - kept) / weights
    assert (summary["seeds"], summary["steps"]) == (2, 12)
    assert summary["seconds"] > 0
    for arm in ("dense_accuracy", "sparse_accuracy"):
        numbers = summary[arm]
        assert set(numbers) == {"mean", "std", "per_seed", "at_chance", "empty_layers"}
        assert len(numbers["per_seed"]) == 2
        assert numbers["mean"] == np.mean(numbers["per_seed"])


def test_metrics_of_both_arms(finished):
    records = finished.records
    assert [record["step"] for record in records] == [4, 8, 12]
    assert all(len(record["sparse"]["sparsity"]) == 2 for record in records)
    assert records[0]["dense"]["loss"] != records[-1]["dense"]["loss"]
    assert "sparsity" not in records[0]["dense"]
    assert records[-1]["sparse"]["sparsity"] == pytest.approx([0.95, 0.95], abs=1e-4)


@pytest.mark.full
def test_the_model_loads_and_is_sparse(finished):
    params, _, masks = finished.model()
    for layer in ("Dense_0", "Dense_1", "Dense_2"):
        assert masks[layer]["bias"] is None
        assert not params[layer]["kernel"][~masks[layer]["kernel"]].any()
    summary = finished.summary
    assert sum(int(mask[0].sum()) for mask in jax.tree.leaves(masks)) == summary["kept_weights"][0]


BEST = "--keep-best --evaluations 2"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The short run on two devices; it keeps the best."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "devices_for", lambda seeds: 2)
        return running.varied("gmp", BEST, tmp_path_factory.mktemp("two") / "run")


@pytest.mark.full
def test_seeds_on_two_devices_are_those_of_one(finished, two):
    """To float tolerance."""
    for own, theirs in zip(two.records, finished.records, strict=True):
        for arm in ("dense", "sparse"):
            np.testing.assert_allclose(own[arm]["loss"], theirs[arm]["loss"], rtol=1e-5)
            assert own[arm].get("sparsity") == theirs[arm].get("sparsity")
    *_, masks = two.model()
    *_, same = finished.model()
    assert min(jax.tree.leaves(jax.tree.map(lambda a, b: np.mean(a == b), masks, same))) > 0.99


@pytest.mark.full
def test_a_run_stopped_on_two_devices_goes_on_to_the_same_bits(two, tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "devices_for", lambda seeds: 2)
    out = tmp_path / "again"
    argv = [*two.case.flags.split(), *BEST.split(), "--out", str(out)]
    assert running.interrupted(gmp, argv, when={"step": 4}) == 130
    gmp.main(["--out", str(out), "--resume"])
    assert running.records(out) == two.records
    running.same_models(out, two.out)
    (kept,), (first,) = ((run / folder.BEST).iterdir() for run in (out, two.out))
    assert kept.name == first.name


@pytest.mark.full
def test_the_best_is_the_most_accurate_of_the_sparsest(two):
    tested = [record for record in two.records if "test_accuracy" in record["sparse"]]
    assert [record["step"] for record in tested] == [8, 12]  # evaluations, evenly spread
    best = max(tested, key=lambda record: worth(record["sparse"]))
    (kept,) = (two.out / folder.BEST).iterdir()
    assert int(kept.name) == best["step"]
    params = checkpoints.read(kept).tree["settled"]["sparse"]["params"]
    assert best["sparse"]["test_accuracy"] == running.accuracies(two.out, params, {})


def worth(arm):
    """The sparsest is best; of equally sparse ones, the most accurate on test data."""
    return round(np.mean(arm["sparsity"]), 4), np.mean(arm["test_accuracy"])


def test_progress_says_that_accuracy_is_that_of_training():
    own = {"loss": [0.5], "accuracy": [0.25]}
    few = {"step": 1, "dense": own, "sparse": own | {"sparsity": [0.9]}}
    said = "dense: loss 0.500, train acc 25.0%  sparse 90.0%: loss 0.500, train acc 25.0%"
    assert arms._in_words(few) == said
    many = {"step": 1} | dict.fromkeys("abcd", own)
    assert arms._in_words(many) == "train acc: a 25.0%  b 25.0%  c 25.0%  d 25.0%"


def test_pruning_steps_lie_within_training():
    for steps in (2, 3, 10, 1000):
        for begin, end in ((0, 1), (0.1, 0.7), (0.99, 1), (0, 0.001)):
            first, last = gmp.pruning_steps(begin, end, steps)
            assert 0 <= first < last <= steps - 1


@pytest.mark.full
@pytest.mark.parametrize("allocation", list(gmp.ALLOCATIONS))
@pytest.mark.parametrize("pattern", list(gmp.PATTERNS))
def test_every_way_of_pruning_reaches_its_sparsity(allocation, pattern):
    config = gmp.Config(sparsity=0.75, allocation=allocation, pattern=pattern, every=3)
    tx = gmp.arms(config, data.load("digits", train_examples=64), steps=4)["sparse"].optimizer
    params = {"a": jax.random.normal(jax.random.key(0), (32, 32)), "b": jnp.ones((32, 16)) * 0.3}
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(4):
        _, state = update(params, state, params)
    assert jp.sparsity(jp.get_masks(state)) == pytest.approx(0.75, abs=0.02)


@pytest.mark.full
def test_a_convolutional_network_with_batch_norm(tmp_path):
    how = "--model conv --norm batch --width 0.25 --sparsity 0.8"
    conv = running.varied("gmp", how, tmp_path / "conv")
    weights = conv.summary["prunable_weights"]
    assert conv.summary["kept_weights"] == [weights - round(0.8 * weights)] * 2
    assert conv.model()[1]["BatchNorm_0"]["mean"].shape == (2, 8)
