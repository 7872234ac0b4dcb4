"""Lottery tickets: what each arm begins from, keeps, and tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import tickets
from recipes.common import best, data, lanes
from recipes.reports import tickets as report

ARMS = (*tickets.METHODS, *tickets.CONTROLS)
LAYERS = ("Dense_0", "Dense_1", "Dense_2")
SIZES = {"Dense_0": 64 * 256, "Dense_1": 256 * 128, "Dense_2": 128 * 10}
WEIGHTS = sum(SIZES.values())


def test_a_phase_prunes_as_published_unless_told():
    """20 % of what is left, Frankle and Carbin, 2019."""
    config = tickets.Config()
    assert jp.tickets.rate(config.sparsity, config.phases) == pytest.approx(0.2, abs=0.005)


@pytest.mark.full
def test_every_phase_prunes_as_much_as_it_should(finished):
    records = finished.records
    assert [record["phase"] for record in records] == [0, 1, 2, 3]
    assert records[0]["dense"]["kept_weights"] == [WEIGHTS, WEIGHTS]
    rate = jp.tickets.rate(0.9, 3)
    for k, record in enumerate(records[1:], 1):
        left = {name: round((1 - rate) ** k * SIZES[name]) for name in LAYERS[:2]}
        left["Dense_2"] = round((1 - rate / 2) ** k * SIZES["Dense_2"])  # half the rate
        for arm in ARMS:
            if arm != "sap":
                assert record[arm]["kept_weights"] == [sum(left.values())] * 2
    sap = np.array([record["sap"]["kept_weights"] for record in records[1:]])
    assert (np.diff(sap, axis=0) < 0).all() and (sap < WEIGHTS).all()


@pytest.mark.full
def test_the_index_after_each_phase_is_that_of_the_weights_left(finished):
    """1 - mean(sqrt |w|)^2 / mean |w|, of all kept weights of a replicate."""
    for arm in ("ltr", "sap"):
        params, _, masks = finished.model(arm)
        for i, told in enumerate(finished.summary["arms"][arm][-1]["pq_index"]["per_seed"]):
            kept = [np.abs(params[n]["kernel"][i][masks[n]["kernel"][i]]) for n in LAYERS]
            w = np.concatenate(kept).astype(np.float64)
            assert told == pytest.approx(1 - np.sqrt(w).mean() ** 2 / w.mean(), abs=1e-5)
    curves = report.indices(finished.records, finished.config.method)
    assert set(curves) == set(tickets.METHODS)
    assert all(values.shape == (4, 2) for values in curves.values())
    first = [values[0].tolist() for values in curves.values()]
    assert all(values == first[0] for values in first)  # of the dense networks


@pytest.mark.full
def test_early_steps_are_steps_at_which_validation_was_measured(finished):
    for record in finished.records[1:]:
        for arm in ARMS:
            assert set(record[arm]["early_step"]) <= {6, 12}
            for key in ("validation_accuracy", "test_accuracy", "end_test_accuracy"):
                assert all(0 <= accuracy <= 1 for accuracy in record[arm][key])


@pytest.mark.full
def test_controls_have_the_tickets_masks_or_counts(finished):
    (params, _, masks), (new, _, same), (_, _, random) = map(
        finished.model, ("ltr", "reinit", "random")
    )
    jax.tree.map(np.testing.assert_array_equal, masks, same)
    for layer in LAYERS:
        mask, other = masks[layer]["kernel"], random[layer]["kernel"]
        counts = lambda m: m.reshape(2, -1).sum(1).tolist()
        assert counts(mask) == counts(other) and (mask != other).any()
        assert not params[layer]["kernel"][~mask].any()
        assert (params[layer]["kernel"] != new[layer]["kernel"])[mask].mean() > 0.9


@pytest.mark.full
def test_the_summary_says_down_to_where_an_arm_keeps_up(finished):
    summary = finished.summary
    assert summary["prunable_weights"] == WEIGHTS
    assert summary["phase_steps"] == {
        arm: 9 if arm in ("ltr", "sap", "ap", "random") else 12 for arm in ARMS
    }
    assert [n["phase"] for n in summary["arms"]["ltr"]] == [1, 2, 3]
    found = [
        {"weights_left": left, "test_accuracy": {"mean": mean}}
        for left, mean in ((0.5, 0.97), (0.25, 0.98), (0.1, 0.9), (0.05, 0.99))
    ]
    assert report.keeps_up_to(found, 0.96) == 0.25
    assert report.keeps_up_to(found, 0.975) == 1.0


def starts(network_of, index=1, **changes):
    """A study, what is settled if methods came to `network_of(later)`, and what arms begin from."""
    config = tickets.Config(
        seeds=2, steps=12, batch_size=32, rewind=3, method=("ltr", "lrr", "reinit", "random"),
        **changes,
    )  # fmt: skip
    digits = data.load("digits", train_examples=256)
    study = tickets.study_of(config, digits, digits.test)
    first = tickets.untrained(study)
    later = jax.tree.map(lambda x: x + 0.1 if x.dtype != bool else x, first.early)
    ends = {arm: end._replace(network=network_of(later)) for arm, end in first.ends.items()}
    settled = tickets.Settled(later, ends)
    return study, settled, tickets.starts_of(study, settled, index)


@pytest.mark.full
def test_what_each_arm_begins_a_phase_from():
    twice = lambda later: later._replace(params=jax.tree.map(lambda w: 2 * w, later.params))
    study, settled, begun = starts(twice)
    weights = {"ltr": settled.early, "random": settled.early, "lrr": twice(settled.early)}
    for arm, source in weights.items():
        network = begun[arm][0]
        expected = jp.apply_masks(source.params, network.masks)
        jax.tree.map(np.testing.assert_array_equal, network.params, expected)
    fresh = begun["reinit"][0].params["Dense_0"]["kernel"]
    first = lanes.initial(study.program, study.keys)
    others = (first.params["Dense_0"]["kernel"], settled.early.params["Dense_0"]["kernel"])
    assert all((fresh != other)[fresh != 0].mean() > 0.99 for other in others)
    # tickets see the data again in their order, from the rewind step on; others in a new one
    same = lambda a: bool((jax.random.key_data(a) == jax.random.key_data(study.keys)).all())
    assert same(begun["ltr"][1].order) and not same(begun["lrr"][1].order)
    rates = begun["ltr"][1].rates
    assert rates.shape == begun["reinit"][1].rates.shape == (2, 12)
    assert not rates[:, 9:].any() and rates[:, :9].all()


@pytest.mark.full
def test_statistics_are_rewound_with_weights_and_random_masks_are_drawn_anew():
    study, settled, begun = starts(lambda later: later)
    own = lambda network, mean: network._replace(batch_stats={"mean": jnp.full((2, 3), mean)})
    ends = {arm: end._replace(network=own(end.network, 2.0)) for arm, end in settled.ends.items()}
    next_ = tickets.starts_of(study, settled._replace(early=own(settled.early, 1.0), ends=ends), 2)
    means = {arm: float(next_[arm][0].batch_stats["mean"][0, 0]) for arm in ("ltr", "lrr")}
    assert means == {"ltr": 1, "lrr": 2}
    before, after = (b["random"][0].masks["Dense_0"]["kernel"] for b in (begun, next_))
    both = float((before & after).sum() / after.sum())  # with the keys of before all would be in it
    assert both == pytest.approx(float(before.mean()), abs=0.02)


class Watched:
    """A journal that is never interrupted, and notes what `of` says of the networks."""

    def __init__(self, of):
        self.of, self.seen = of, {}

    def once(self, name, steps, state, train, words):
        return train(state, 0, self.at)

    def at(self, step, course):
        self.seen[step] = self.of(course.state.network.variables).tolist()


@pytest.mark.full
def test_what_is_told_is_of_the_first_step_of_best_validation_accuracy():
    study, _, begun = starts(lambda later: later)
    accuracy = iter([0.5, 0.7, 0.7, 0.6])
    of_kernel = lambda variables: np.asarray(variables["params"]["Dense_0"]["kernel"]).sum((1, 2))
    study = study._replace(validate=lambda _: np.full(2, next(accuracy)), test=of_kernel)
    journal = Watched(of_kernel)
    ends, _ = tickets.train(study, {"lrr": begun["lrr"]}, [2, 4, 6, 8], "phase", journal)
    told = report.of_end(ends["lrr"], study.test, study.norms)
    assert told["early_step"] == [4, 4] and told["validation_accuracy"] == [0.7, 0.7]
    assert told["test_accuracy"] == journal.seen[4] != journal.seen[8]
    assert told["end_test_accuracy"] == journal.seen[8]


def test_steps_are_chosen_on_validation_data_and_reported_on_test_data():
    digits = data.load("digits", train_examples=256)
    config = tickets.Config(seeds=2, steps=12, batch_size=32)
    no_answer = digits.test._replace(labels=np.full_like(digits.test.labels, -1))
    for test, validation in ((digits.test, no_answer), (no_answer, digits.test)):
        study = tickets.study_of(config, digits._replace(test=test), validation)
        network = tickets.untrained(study).early.variables
        assert study.test(network).any() == (test is digits.test)
        assert study.validate(network).any() == (validation is digits.test)


@pytest.mark.full
def test_the_global_threshold_and_the_exempt_layer():
    study, _, begun = starts(lambda later: later, 0, allocation="global")
    masks = begun["ltr"][0].masks
    assert masks["Dense_2"]["kernel"].all()
    kept = [int(masks[name]["kernel"][0].sum()) for name in LAYERS[:2]]
    rest = SIZES["Dense_0"] + SIZES["Dense_1"]
    assert sum(kept) == rest - round(jp.tickets.rate(0.98, study.phases) * rest)
    assert kept[0] / SIZES["Dense_0"] != pytest.approx(kept[1] / SIZES["Dense_1"], abs=0.01)


def test_looks_are_at_whole_chunks_and_the_last_step():
    assert best.looks_at(200, 20, 5) == [40, 80, 120, 160, 200]
    assert best.looks_at(205, 20, 3) == [60, 140, 205]
    assert best.looks_at(5, 20, 5) == [5]


def test_ten_phases_of_a_fifth():
    config = tickets.Config(rate=0.2, phases=10)
    assert tickets.sparsity_of(config) == pytest.approx(0.8926, abs=5e-5)
