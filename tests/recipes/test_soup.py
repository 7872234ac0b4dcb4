"""Soups of children: what is chosen, averaged, and pruned."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import soup
from recipes.common import data, flags, lanes, measures, models
from tests.quick import quick
from tests.recipes import running

WEIGHTS = 64 * 64 + 64 * 32 + 32 * 10
ARMS = ["soup", "greedy soup", "best child", "mean child", "ensemble", "IMP", "IMP 3x"]


def digits():
    return data.load("digits", train_examples=300)


def test_accuracies_of_the_last_phase_are_those_of_the_saved_soup(finished):
    last = finished.summary["phases"][-1]["test_accuracy"]
    assert last["soup"]["per_seed"] == running.test_accuracies(finished.out)


def test_every_phase_has_every_network_and_every_pair(finished):
    dense, *after = finished.records
    assert list(dense["test_accuracy"]) == ["dense"]
    assert [record["phase"] for record in after] == [1, 2]
    for record, kept in zip(after, (WEIGHTS // 2, round(WEIGHTS * 0.1)), strict=True):
        assert list(record["test_accuracy"]) == ARMS
        assert all(len(values) == 2 for values in record["test_accuracy"].values())
        for name in ("error", "loss"):
            assert np.shape(record[f"{name}_barrier"]) == (2, 3)
        assert record["kept_weights"] == dict.fromkeys(("soup", "imp", "longer"), [kept] * 2)


def test_the_best_child_is_chosen_on_validation_data_and_reported_on_test_data(finished):
    for record in finished.records[1:]:
        chosen_by = np.array(record["children_validation_accuracy"])
        tested = np.array(record["children_test_accuracy"])
        best = chosen_by.argmax(1)
        assert record["best_child"] == best.tolist()
        assert record["test_accuracy"]["best child"] == tested[np.arange(2), best].tolist()
        assert record["test_accuracy"]["mean child"] == pytest.approx(tested.mean(1).tolist())
        chosen = np.array(record["greedily_chosen"])
        assert chosen[np.arange(2), best].all()  # the best is where it starts
        # validation has 30 examples, test 360: their accuracies are of other denominators
        assert (chosen_by * 30 == np.rint(chosen_by * 30)).all()
        assert np.allclose(tested * 360, np.rint(tested * 360))


@pytest.mark.full
def test_the_saved_soup_is_sparse_and_of_the_accuracy_that_is_told(finished):
    params, _, masks = finished.model()
    kept = 0
    for layer in ("Dense_0", "Dense_1", "Dense_2"):
        kernel, mask = params[layer]["kernel"], masks[layer]["kernel"]
        assert not kernel[~mask].any()
        kept += mask.reshape(2, -1).sum(1)
    assert kept.tolist() == [round(WEIGHTS * 0.1)] * 2
    study = soup.study_of(finished.config, digits())
    told = finished.records[-1]["test_accuracy"]["soup"]
    assert study.test({"params": params}).tolist() == told


# --- the method -----------------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).normal(size=(50, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def study():
    """Of two seeds and three children that retrain for 8 steps; nothing of it is trained."""
    given = {"seeds": 2, "steps": 16, "retrain": 0.5, "width": 0.125, "batch_size": 32, "points": 3}
    config = soup.Config(**given)
    return config, soup.study_of(config, digits())


@pytest.mark.parametrize("vary", soup.VARIATIONS)
def test_children_differ_in_one_thing(study, vary):
    config, s = study
    config = replace(config, vary=vary)
    lane, longest = soup.lanes_of_children(config, s, 1)
    rates, decays = np.asarray(lane.rates)[:3], np.asarray(lane.decay)
    assert rates.shape == (3, s.length)
    assert longest == (12 if vary == "length" else 8)
    factors = {name: np.ones(3) for name in soup.VARIATIONS} | {vary: [0.5, 1, 1.5]}
    assert decays == pytest.approx(1e-4 * np.tile(factors["weight_decay"], 2))
    # a rate rises from 0 in the first step, and is 0 behind the last
    assert (rates > 0).sum(1).tolist() == [round(8 * f) - 1 for f in factors["length"]]
    if vary != "length":
        assert rates.max(1) / rates.max(1)[1] == pytest.approx(factors["learning_rate"])
    np.testing.assert_array_equal(lane.rates[3:], rates)  # the other seed's
    keys = jax.random.key_data(lane.order).tolist()
    assert len({str(key) for key in keys}) == (6 if vary == "order" else 2)


def test_every_phase_has_its_own_order(study):
    config, s = study
    first, second = (soup.lanes_of_children(config, s, phase)[0].order for phase in (1, 2))
    assert (first != second).all()


@pytest.mark.full
def test_what_is_pruned_stays_pruned_whatever_is_left(study):
    _, s = study
    dense = lanes.initial(s.program, s.keys)
    assert float(jp.sparsity(dense.masks)) == 0
    half = soup.prune(dense, jnp.float32(0.5))
    nothing = half._replace(params=jax.tree.map(jnp.zeros_like, half.params))  # all weights tie
    again = soup.prune(nothing, jnp.float32(0.75))
    assert jax.vmap(jp.sparsity)(again.masks) == pytest.approx([0.75, 0.75])
    for before, after in zip(*map(jax.tree.leaves, (half.masks, again.masks)), strict=True):
        assert not (after & ~before).any()


@pytest.mark.full
def test_an_ensemble_is_the_mean_of_probabilities():
    module = models.model("mlp", 10, width=0.125)
    variables = models.init(module, lanes.seed_keys(0, 6), IMAGES[:1])
    labels = np.random.default_rng(1).integers(0, 10, 50).astype(np.int32)
    probabilities = jax.nn.softmax(jax.vmap(lambda own: module.apply(own, IMAGES))(variables))
    mean = np.asarray(probabilities).reshape(2, 3, 50, 10).mean(1)
    expected = (mean.argmax(-1) == labels).mean(1)
    together = measures.accuracy(soup.Ensemble(module), data.Split(IMAGES, labels))
    assert together(lanes.split(variables, 2, 3)) == pytest.approx(expected)


@pytest.mark.full
def test_greedy_soups_are_chosen_on_validation_data(study):
    config, _ = study
    no_answer = data.Split(IMAGES, np.full(50, -1, np.int32))
    s = soup.study_of(config, digits()._replace(test=no_answer))
    flat = lanes.initial(s.program, lanes.seed_keys(0, 6)).variables
    found = s.greedy(lanes.split(flat, 2, 3))
    accuracy = s.validate(flat).reshape(2, 3)
    np.testing.assert_allclose(found.scores, accuracy - 1, atol=1e-6)
    assert np.ptp(accuracy, axis=1).all() and not s.test(flat).any()


@pytest.mark.parametrize("average", quick(soup.AVERAGES))
def test_a_lineage_goes_on_from_the_average_that_is_asked_for(study, monkeypatch, average):
    config, s = study
    first = lanes.initial(s.program, s.keys)
    of = lambda value: {"params": jax.tree.map(lambda w: jnp.full_like(w, value), first.params)}
    greedy = jp.soups.GreedySoup(of(2.0), *[None] * (len(jp.soups.GreedySoup._fields) - 1))
    s = s._replace(average=lambda children: of(1.0), greedy=lambda children: greedy)
    nothing = {"error": np.zeros((2, 3, 3)), "loss": np.zeros((2, 3, 3))}
    monkeypatch.setattr(soup, "retrain", lambda *_: (None, of(3.0), of(4.0)))
    monkeypatch.setattr(soup.report, "judge", lambda *_: {})
    monkeypatch.setattr(measures, "between_siblings", lambda *_: nothing)
    lineages, _ = soup.one_phase(
        replace(config, average=average), s, None, 1, soup.Lineages(first, first, first)
    )
    bias = lambda network: float(network.params["Dense_0"]["bias"][0, 0])
    assert [bias(own) for own in lineages] == [1.0 if average == "uniform" else 2.0, 3, 4]


@pytest.mark.full
def test_running_statistics_are_made_anew(tmp_path):
    flags = "--model conv --norm batch --vary learning_rate --average greedy --optimizer adam"
    conv = running.varied("soup", f"{flags} --learning-rate 0.01", tmp_path / "conv")
    assert conv.summary["running_statistics"] == "recalibrated"
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(conv.model()[1]))


def test_the_sparsity_of_each_phase():
    made = soup.sparsities_of(soup.Config())
    assert made == pytest.approx([0.7286, 0.9263, 0.98], abs=5e-5)
    assert made[-1] == 0.98
    flags.check(soup.Config())
