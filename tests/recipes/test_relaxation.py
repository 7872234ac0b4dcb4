"""Relaxed neurons: budgets, stages, and what a stage computes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.structured import Removal
from recipes import relaxation
from recipes.common import data, lanes, small
from recipes.common.lanes import Network
from recipes.relaxation import GATES, NETWORK
from recipes.reports import relaxation as report

ARMS = ["dense", "relaxed 50 %", "relaxed 25 %"]


@pytest.mark.full
def test_the_budgets_are_met(finished):
    networks = finished.summary["networks"]
    assert list(networks) == ARMS
    assert networks["dense"]["flops_left"] == [1, 1]
    for arm, share in zip(ARMS[1:], (0.5, 0.25), strict=True):
        assert all(share - 0.05 < left <= share for left in networks[arm]["flops_left"])


@pytest.mark.full
def test_a_stage_prunes_first_and_then_trains(finished):
    """By the gates of the stage before: a line after the first steps of a stage has its cut."""
    found = finished.records
    assert [r["stage"] for r in found] == ["init", "search 0", "search 1", "final", "final"]
    left = np.array([[r[arm]["flops"] for arm in ARMS] for r in found]).mean(2)
    assert (left[:, 0] == 1).all() and (left[:2] == 1).all()
    assert (left[2, 1:] < 1).all() and (np.diff(left, axis=0) <= 0).all()
    relaxed = np.array([r[ARMS[2]]["relaxed"] for r in found]).mean(1)
    assert 1 > relaxed[0] > relaxed[1]
    np.testing.assert_allclose(relaxed[3], left[3, 2], rtol=1e-5)  # gates are folded, 0 or 1


@pytest.mark.full
def test_the_models_are_small_and_load_without_the_large_ones(finished):
    summary = finished.summary
    compacted = small.load(finished.out / "model" / "relaxed-25")
    widths = summary["networks"][ARMS[2]]["widths"][0]
    assert compacted.params["params"]["Dense_0"]["kernel"].shape == (64, widths["params/Dense_0"])
    digits = data.load("digits", train_examples=256)
    right = np.argmax(compacted.fn(compacted.params, digits.test.images), -1) == digits.test.labels
    accuracy = summary["networks"][ARMS[2]]["test_accuracy"]["per_seed"][0]
    assert right.mean() == pytest.approx(accuracy, abs=1e-6)
    assert summary["masked_and_compacted"][ARMS[2]]["largest_difference"] < 1e-5


# --- what a stage computes ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study():
    """One seed, one budget."""
    digits = data.load("digits", train_examples=64)
    config = relaxation.Config(
        flops=(0.25,), seeds=1, width=0.0625, steps=10, thresholds=(0.3,), batch_size=32,
        weight_decay=0.5,
    )  # fmt: skip
    return relaxation.study_of(config, digits), digits


def half(s):
    """Every other neuron."""
    groups = s.neurons.structure.groups
    kept = {name: np.arange(group.size) % 2 == 0 for name, group in groups.items()}
    return Removal(kept, ())


def lane_of(s, *left):
    return relaxation.lane_of(s, s.stages[2], left)


def both(s):
    """Whole for the dense lane, and every other neuron for the other."""
    left = half(s)
    return Removal({name: np.ones_like(own) for name, own in left.kept.items()}, ()), left


@pytest.mark.full
def test_gates_and_masks_are_a_smaller_network(study):
    s, digits = study
    whole, left = both(s)
    params, batch_stats, *_ = relaxation.untrained(s)
    params[GATES] = tuple(
        jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(params[GATES])
    )
    lane = lane_of(s, whole, left)
    own = lanes.lane_of(s.variables(params, batch_stats, lane), 1)
    gates = small.by_group(s.neurons.structure, [gate[1] for gate in s.gates(params, lane)])
    for name, gate in gates.items():
        assert not gate[~left.kept[name]].any() and gate.max() == 1  # of those that are left
    variables = {"params": lanes.lane_of(params[NETWORK], 1)}
    structure = s.neurons.structure
    compacted = jp.compact(structure, jp.structured.apply_gates(structure, variables, gates), left)
    images = digits.test.images[:8]
    np.testing.assert_allclose(
        s.program.module.apply(own, images),
        compacted.fn(compacted.params, images),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.full
def test_dense_networks_have_no_gates_and_what_was_cut_does_not_learn(study):
    s, _ = study
    whole, left = both(s)
    without = s._replace(decay=0.0)
    lane = lane_of(without, whole, left)
    params, batch_stats, *_ = relaxation.untrained(s)
    state = lanes.begin(s.program, Network(params, batch_stats, None), lane)
    before = jax.tree.map(np.asarray, state.params)
    after = lanes.train(s.program, state, lane, 2, lambda step, state: None).params
    for i, name in enumerate(s.neurons.structure.groups):
        moved = np.asarray(after[GATES][i] != before[GATES][i])
        assert not moved[0].any() and (moved[1] <= left.kept[name]).all() and moved[1].any()
    kernels = [tree[NETWORK]["Dense_1"]["kernel"] for tree in (before, after)]
    moved = np.asarray(kernels[0] != kernels[1])
    rows, columns = (left.kept[f"params/Dense_{i}"] for i in (0, 1))
    assert not moved[1][~rows].any() and not moved[1][:, ~columns].any() and moved.any((1, 2)).all()


def test_each_stage_sees_the_examples_that_follow_those_of_the_one_before(study, monkeypatch):
    s, _ = study
    seen, settled = [], relaxation.untrained(s)

    class Here:
        """A journal that is never interrupted, and a watch that looks at nothing."""

        once = staticmethod(lambda name, steps, state, train, words: train(state, 0, Here.look))
        begin = look = staticmethod(lambda *_: None)

    def advance(p, state, lane, stop, start=0, first=0):
        seen.append(first + start)
        yield lanes.Progress(stop, 0.0, state, {})

    monkeypatch.setattr(lanes, "advance", advance)
    for index in range(3):
        settled, _ = relaxation.one_stage(s, Here, Here, index, settled)
    steps = [stage.steps for stage in s.stages]
    assert seen == [0, steps[0], steps[0] + steps[1]]


@pytest.mark.full
def test_weight_decay_is_not_for_gates(study):
    """Else it would pull logits to 0, and gates to 1/2."""
    s, _ = study
    lane = lane_of(s, half(s), half(s))
    params, batch_stats, *_ = relaxation.untrained(s)
    state = lanes.begin(s.program, Network(params, batch_stats, None), lane)
    config = relaxation.Config(weight_decay=0.5)
    lane, params, opt_state = lanes.lane_of((lane, params, state.opt_state), 1)
    optimizer = relaxation.optimizer_of(config)(lane)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, opt_state, params)
    assert not any(u.any() for u in updates[GATES])
    assert all(u.any() for u in jax.tree.leaves(jp.kernels(updates[NETWORK])))
    assert optax.tree.norm(updates) > 0


def test_the_ejector_comes_on_half_way_and_the_last_stage_has_none(study):
    s, _ = study
    search, final = s.stages[1]._replace(steps=50), s.stages[-1]
    lane = relaxation.lane_of(s._replace(stages=[search, final]), search, [half(s)] * 2)
    assert not lane.ejection[0].any()  # dense
    np.testing.assert_array_equal(lane.ejection[1] > 0, np.arange(50) > 24)
    assert final.pull == final.ejection == 0 and not final.gating


# --- bad input ------------------------------------------------------------------------------------


def test_with_no_budget_the_thresholds_decide():
    config = relaxation.Config(flops=(0.0,), thresholds=(0.02, 0.03, 0.05, 0.1, 0.2))
    stages, chunk_steps = relaxation.stages_of(config, 873, 20)
    assert [stage.steps for stage in stages] == [100] * 7 + [173] and chunk_steps == 20
    stages, chunk_steps = relaxation.stages_of(config, 873, 30)
    assert [stage.steps for stage in stages] == [99] * 7 + [180] and chunk_steps == 33
    assert report.arm_name(0.0) == "relaxed"
