"""Pruned neurons: budgets, scores, and the compacted networks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import structured
from recipes.common import data, folder, lanes, small

SCORES = ("l1", "random")
WIDTHS = {"params/Dense_0": 32, "params/Dense_1": 16}
WEIGHTS = 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10


@pytest.mark.full
def test_every_round_has_every_arm(finished):
    first, *rounds = finished.records
    assert list(first) == ["round", "step", "dense"]
    assert [record["flops_asked"] for record in rounds] == [0.5, 0.25]
    assert [record["step"] for record in rounds] == [24, 32]
    for record in rounds:
        assert [key for key in record if isinstance(record[key], dict)] == ["dense", *SCORES]
        # who is not pruned has, before training on, what the round before ended with
        before = first if record["round"] == 1 else rounds[0]
        assert record["dense"]["before_training_on"] == before["dense"]["test_accuracy"]


@pytest.mark.full
def test_budgets_are_met(finished):
    summary = finished.summary
    dense = summary["networks"]["dense"]
    assert dense["weights"] == [WEIGHTS] * 2 and dense["widths"] == [WIDTHS] * 2
    for score in SCORES:
        for share in (0.5, 0.25):
            numbers = summary["networks"][f"{score} {100 * share:g} %"]
            assert all(share - 0.05 < left <= share for left in numbers["flops_left"])
            assert all(0 < n < 1 for n in numbers["weights_left"])
    assert summary["networks"]["dense, as long"]["flops_left"] == [1, 1]


@pytest.mark.full
def test_removed_networks_are_the_masked_ones(finished):
    summary = finished.summary
    assert list(summary["masked_and_compacted"]) == list(summary["networks"])[2:]
    for own in summary["masked_and_compacted"].values():
        assert max(own["largest_difference"]) < 1e-5
        assert own["answers_that_differ"] == [0, 0]
    for record in finished.records[1:]:
        for score in SCORES:
            assert record[score]["compacted_accuracy"] == record[score]["test_accuracy"]


@pytest.mark.full
def test_what_is_pruned_stays_pruned_and_seeds_differ(finished):
    kept = {
        share: json.loads((finished.out / folder.MODEL / f"l1-{share}" / small.KEPT).read_text())
        for share in (50, 25)
    }
    for many, few in zip(kept[50]["kept"], kept[25]["kept"], strict=True):
        assert all(set(few[name]) < set(many[name]) for name in WIDTHS)
    assert kept[25]["kept"][0] != kept[25]["kept"][1]


@pytest.mark.full
def test_a_saved_network_does_what_the_table_says(finished):
    summary = finished.summary
    test = data.load("digits", train_examples=300).test
    for score in SCORES:
        own = summary["networks"][f"{score} 25 %"]
        compacted = small.load(finished.out / folder.MODEL / f"{score}-25", seed=1)
        answers = np.argmax(compacted.fn(compacted.params, test.images), 1)
        assert np.mean(answers == test.labels) == own["test_accuracy"]["per_seed"][1]
        assert compacted.params["params"]["Dense_1"]["kernel"].shape == tuple(
            own["widths"][1].values()
        )


def test_shares_fall_by_the_same_fraction():
    assert structured.shares_of([0.5, 0.25], 1) == [0.5, 0.25]
    np.testing.assert_allclose(
        structured.shares_of([0.5, 0.02], 2), [0.5**0.5, 0.5, 0.1, 0.02], rtol=1e-12
    )


# --- rounds ---------------------------------------------------------------------------------------


@pytest.mark.full
def test_each_round_draws_its_random_scores_anew():
    of, seen = study(score=("random",)), []

    def spy(variables, kept, keys):
        seen.append(jax.random.key_data(keys))
        return {group: jnp.where(own, 1.0, -jnp.inf) for group, own in kept.items()}

    of = of._replace(scores={"random": spy})
    networks = lanes.tile(structured.untrained(of), len(of.arms))
    for index in range(2):
        networks = structured.pruned(of, networks, 0.9, index)
    assert len(np.unique(np.concatenate(seen), axis=0)) == 4  # of two seeds in two rounds


# --- scores ---------------------------------------------------------------------------------------


def study(**changes):
    """Of tiny networks; nothing of it has run."""
    config = structured.Config(width=1 / 32, batch_size=16, seeds=2, steps=2, **changes)
    return structured.study_of(config, data.load("digits", train_examples=64))


@pytest.mark.full
def test_every_score_has_the_mean_one_over_what_is_kept():
    of = study(model="conv", score=[n for n in structured.SCORES if n != "taylor"])
    networks = structured.untrained(of)
    kept = small.by_group(of.structure, [own.at[:, 0].set(False) for own in networks.kept])
    for name, score in of.scores.items():
        for own in score(networks.network.variables, kept, of.keys).values():
            assert own.shape == (2, 8) and (own[:, 0] == -jnp.inf).all()
            np.testing.assert_allclose(own[:, 1:].mean(1), 1, rtol=1e-4, err_msg=name)
    drawn = of.scores["random"](networks.network.variables, kept, of.keys)["params/Conv_0"]
    assert (drawn[0] != drawn[1])[1:].all()


@pytest.mark.full
def test_taylor_takes_the_gradient_of_the_mean_loss():
    of = study(score=("taylor",))
    variables, module = lanes.initial(of.program, of.keys).variables, of.program.module
    examples = data.load("digits", train_examples=64).train
    found = jax.vmap(jax.grad(structured.mean_loss(module, examples, 16)))(variables)

    def loss(variables):
        logits = jax.nn.log_softmax(module.apply(variables, examples.images))
        return -jnp.mean(logits[jnp.arange(64), examples.labels])

    one = lanes.lane_of(variables, 1)
    alone, kernel = jax.grad(loss)(one), ("params", "Dense_1", "kernel")
    for key in kernel:
        alone, found = alone[key], found[key]
    np.testing.assert_allclose(found[1], alone, rtol=1e-3, atol=1e-6)


@pytest.mark.full
def test_scores_see_no_test_data():
    digits = data.load("digits", train_examples=64)
    unseen = digits.test._replace(images=np.full_like(digits.test.images, np.nan))
    config = structured.Config(width=1 / 32, batch_size=16, seeds=2, steps=2, score=("taylor",))
    of = structured.study_of(config, digits._replace(test=unseen))
    networks = structured.untrained(of)
    kept = small.by_group(of.structure, networks.kept)
    for own in of.scores["taylor"](networks.network.variables, kept, of.keys).values():
        assert np.isfinite(own).all()


def test_a_scope_for_every_name():
    structure = study().structure
    assert all(callable(scope(structure)) for scope in structured.SCOPES.values())
    assert structured.SCOPES["local"](structure) is jp.uniform


# --- mistakes -------------------------------------------------------------------------------------
