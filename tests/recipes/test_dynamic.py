"""Every method end to end, in this process: what it writes, refuses, and survives."""

import json

import jax
import numpy as np
import pytest

import jaxprune as jp
from recipes import dynamic
from recipes.common import arms, checkpoints, data, flags, folder, lanes, settings
from tests.recipes import running
from tests.recipes.running import metrics

SHORT = [*running.SHORT, "--every", "3", "--sparsity", "0.9", "--method", *dynamic.METHODS]
SPARSE_AT_ONCE = ("static", "set", "rigl", "top_kast")
WEIGHTS = 64 * 256 + 256 * 128 + 128 * 10


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a short run of all methods."""
    out = tmp_path_factory.mktemp("runs") / "dynamic"
    dynamic.main([*SHORT, "--out", str(out)])
    return out


def test_it_writes_everything(finished):
    report = running.wrote_everything(finished, "training", "layers", "churn")
    for arm in ("dense", *dynamic.METHODS):
        assert f"| {arm} |" in report


def test_the_summary_has_every_arm(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["arms"]) == ["dense", *dynamic.METHODS]
    assert summary["arms"]["dense"]["kept_weights"] == [WEIGHTS, WEIGHTS]
    for method in dynamic.METHODS:
        numbers = summary["arms"][method]
        assert numbers["prunable_weights"] == WEIGHTS
        assert numbers["kept_weights"] == pytest.approx([0.1 * WEIGHTS] * 2, abs=2)
        assert len(numbers["test_accuracy"]["per_seed"]) == 2
        assert 0 <= numbers["overlap_first"]["mean"] <= 1
        assert 0.09 < numbers["ever_active"]["mean"] <= 1


def test_masks_move_as_the_method_says(finished):
    records = folder.read_lines(finished / folder.METRICS)
    first, last = records[0], records[-1]
    for method in SPARSE_AT_ONCE:  # sparse before the first step
        assert first[method]["sparsity"] == pytest.approx([0.9, 0.9], abs=1e-4)
    for method in ("gmp", "dpf", "granet"):
        assert first[method]["sparsity"][0] < 0.9
        assert last[method]["ever_active"] == [1, 1]
    for record in records:
        assert record["static"]["overlap_first"] == record["static"]["overlap_previous"] == [1, 1]
    for method in ("set", "rigl"):
        assert max(first[method]["overlap_first"]) < 1
        assert first[method]["overlap_first"] == first[method]["overlap_previous"]
        assert last[method]["overlap_previous"] == [1, 1]  # rewiring ended at step 9
        assert np.all(np.diff([record[method]["ever_active"] for record in records], axis=0) >= 0)


def test_two_seeds_have_different_masks(finished):
    for method in ("static", "set", "rigl", "granet", "gmp", "top_kast", "dpf"):
        _, _, masks = checkpoints.load_model(finished / folder.MODEL / method)
        mask = masks["Dense_1"]["kernel"]
        assert (mask[0] != mask[1]).any()


def test_every_model_is_sparse(finished):
    for method in dynamic.METHODS:
        params, _, masks = checkpoints.load_model(finished / folder.MODEL / method)
        for layer in ("Dense_0", "Dense_1", "Dense_2"):
            assert not params[layer]["kernel"][~masks[layer]["kernel"]].any()


def test_an_interrupted_run_logs_what_an_uninterrupted_one_does(finished, tmp_path, monkeypatch):
    out, few = tmp_path / "few", ("set", "top_kast")  # beside fewer methods, each trains alike
    argv = [*SHORT[: -len(dynamic.METHODS)], *few, "--out", str(out)]
    assert running.interrupted(dynamic, monkeypatch, argv, step=4) == 130
    dynamic.main(["--out", str(out), "--resume"])
    all_ = metrics(finished)
    assert metrics(out) == [{k: r[k] for k in ("step", "dense", *few)} for r in all_]
    for method in few:
        models = (checkpoints.load_model(path / folder.MODEL / method) for path in (out, finished))
        jax.tree.map(np.testing.assert_array_equal, *models)


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


def test_an_update_may_take_the_place_of_a_step():
    for replace, count in ((False, 3), (True, 2)):
        states = trained(3, method=("rigl",), every=10, replace_step=replace)
        adam = states[-1].opt_state.inner_state[0]
        assert adam.count.tolist() == [count]


def test_top_kast_trains_only_what_it_should():
    before, after = trained(1, method=("top_kast",), backward_sparsity=0.6)
    same = before.params["Dense_1"]["kernel"] == after.params["Dense_1"]["kernel"]
    assert 0.55 < same.mean() < 0.75  # few of the trained have no gradient


def test_granet_from_sparse_to_sparse():
    states = trained(1, method=("granet",), initial_sparsity=0.5)
    assert jp.sparsity(jp.get_masks(states[0].opt_state)) == pytest.approx(0.5, abs=1e-4)
    kernel = states[0].params["Dense_0"]["kernel"]
    assert (kernel == 0).mean() > 0.3


def test_a_fraction_of_zero_rewires_nothing():
    states = trained(2, method=("set",), fraction=0.0, every=1)
    assert jp.overlap(*(jp.get_masks(state.opt_state) for state in states[1:])) == 1


@pytest.mark.parametrize("method", ["granet", "gmp", "dpf"])
@pytest.mark.parametrize("every", [1, 5, 100])
def test_the_final_sparsity_is_reached_whatever_the_cadence(method, every):
    states = trained(8, of=8, method=(method,), every=every)
    *_, before, masks = (jp.get_masks(state.opt_state) for state in states)
    assert jp.sparsity(masks) == pytest.approx(0.9, abs=1e-4)
    if (method, every) == ("granet", 1):  # it rewires while a cadence is left to train in
        assert jp.overlap(before, masks) < 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--method rigl lottery", "unknown --method 'lottery'; choose one of static, set, rigl"),
        ("--method rigl set rigl", "--method has rigl twice"),
        ("--method", "--method needs at least one value"),
        ("--fraction 1.5", "--fraction must be in [0, 1], got 1.5"),
        ("--fraction -0.1", "--fraction must be in [0, 1], got -0.1"),
        ("--sparsity 1", "--sparsity must be in [0, 1), got 1"),
        ("--initial-sparsity 0.99", "--initial-sparsity must be in [0, 0.95], got 0.99"),
        ("--backward-sparsity 0.99", "--backward-sparsity must be in [0, 0.95], got 0.99"),
        ("--begin 0.5 --end 0.4", "--end must be in (0.5, 1], got 0.4"),
        ("--every 0", "--every must be at least 1, got 0"),
        ("--width 0", "--width must be in (0, 100], got 0"),
        ("--allocation global", "unknown --allocation 'global'; choose one of erk, er, uniform"),
        ("--sparsity 0.9999 --allocation uniform", "rigl: 'Dense_2/kernel' would keep 0 of its"),
        ("--sparsity 0.9999 --method top_kast", "top_kast: 'Dense_2/kernel' would keep 0 of its"),
        ("--allocation er --sparsity 0.99995 --method gmp", "gmp: 'Dense_"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in running.mistake(dynamic, capsys, tmp_path, argv.split())


def test_help_tells_all_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        dynamic.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for text in ("{static,set,rigl,granet,gmp,top_kast,dpf}", "--replace-step", "--dataset"):
        assert text in said


def test_the_defaults_make_sense():
    flags.check(dynamic.Config())
    assert isinstance(dynamic.Config(), settings.Settings)
