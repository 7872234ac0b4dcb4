"""The recipe end to end, in this process: what it writes, refuses, and survives."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import soup
from recipes.common import checkpoints, cli, data, flags, folder, lanes, measures, models
from tests.recipes import running

SHORT = ["--seeds", "2", "--steps", "16", "--retrain", "0.5", "--sparsities", "0.5", "0.9"]
SHORT += ["--train-examples", "300", "--batch-size", "32", "--points", "3", "--width", "0.25"]
SHORT += ["--log-every", "8"]
WEIGHTS = 64 * 64 + 64 * 32 + 32 * 10
ARMS = ["soup", "greedy soup", "best child", "mean child", "ensemble", "IMP", "IMP 3x"]

exit_code = partial(running.exit_code, soup)


def digits():
    return data.load("digits", train_examples=300)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """The folder of a short run, and the program that trained its networks."""
    return running.with_program(soup, tmp_path_factory.mktemp("runs") / "soup", SHORT)


@pytest.fixture(scope="module")
def finished(watched):
    """The folder of a short run."""
    return watched[0]


def test_all_phases_run_the_programs_of_the_first(watched):
    # chunks of 8 steps: of 2 networks, and of 2 * (3 children + 1)
    assert len(watched[1].compiled) == 2


def config_of(out):
    """The settings of the short run."""
    return cli.from_yaml(soup.Config, out / folder.CONFIG)


def records_of(out):
    """What it logged, without its clock."""
    return [
        {k: v for k, v in r.items() if k != "seconds"}
        for r in folder.read_lines(out / folder.METRICS)
    ]


def test_it_writes_everything(finished):
    report = running.wrote_everything(finished, "soups", "barriers", "paths", "layers")
    assert "| 50 % sparse | 90 % sparse |" in report
    last = json.loads((finished / "summary.json").read_text())["phases"][-1]
    assert last["test_accuracy"]["soup"]["per_seed"] == running.test_accuracies(finished)
    for arm in ARMS:
        assert f"| {arm} |" in report


def test_every_phase_has_every_network_and_every_pair(finished):
    dense, *after = records_of(finished)
    assert list(dense["test_accuracy"]) == ["dense"]
    assert [record["phase"] for record in after] == [1, 2]
    for record, kept in zip(after, (WEIGHTS // 2, round(WEIGHTS * 0.1)), strict=True):
        assert list(record["test_accuracy"]) == ARMS
        assert all(len(values) == 2 for values in record["test_accuracy"].values())
        for name in ("error", "loss"):
            assert np.shape(record[f"{name}_barrier"]) == (2, 3)
        assert record["kept_weights"] == dict.fromkeys(("soup", "imp", "longer"), [kept] * 2)


def test_the_best_child_is_chosen_on_validation_data_and_reported_on_test_data(finished):
    for record in records_of(finished)[1:]:
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


def test_the_saved_soup_is_sparse_and_of_the_accuracy_that_is_told(finished):
    params, _, masks = checkpoints.load_model(finished / folder.MODEL)
    kept = 0
    for layer in ("Dense_0", "Dense_1", "Dense_2"):
        kernel, mask = params[layer]["kernel"], masks[layer]["kernel"]
        assert not kernel[~mask].any()
        kept += mask.reshape(2, -1).sum(1)
    assert kept.tolist() == [round(WEIGHTS * 0.1)] * 2
    study = soup.study_of(config_of(finished), digits())
    told = records_of(finished)[-1]["test_accuracy"]["soup"]
    assert study.test({"params": params}).tolist() == told


def test_an_interrupted_run_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    out = tmp_path / "stopped"
    argv = [*SHORT, "--out", str(out)]
    assert running.interrupted(soup, monkeypatch, argv, 1, "phase") == 130
    assert [record["phase"] for record in records_of(out)] == [0, 1]
    resume = ["--out", str(out), "--resume"]
    assert running.interrupted(soup, monkeypatch, resume, call=2) == 130  # within a phase
    soup.main(["--out", str(out), "--resume"])
    assert records_of(out) == records_of(finished)
    loaded = (checkpoints.load_model(path / folder.MODEL) for path in (out, finished))
    jax.tree.map(np.testing.assert_array_equal, *loaded)


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


def test_an_ensemble_is_the_mean_of_probabilities():
    module = models.model("mlp", 10, width=0.125)
    variables = models.init(module, lanes.seed_keys(0, 6), IMAGES[:1])
    labels = np.random.default_rng(1).integers(0, 10, 50).astype(np.int32)
    probabilities = jax.nn.softmax(jax.vmap(lambda own: module.apply(own, IMAGES))(variables))
    mean = np.asarray(probabilities).reshape(2, 3, 50, 10).mean(1)
    expected = (mean.argmax(-1) == labels).mean(1)
    together = measures.accuracy(soup.Ensemble(module), data.Split(IMAGES, labels))
    assert together(lanes.split(variables, 2, 3)) == pytest.approx(expected)


def test_greedy_soups_are_chosen_on_validation_data(study):
    config, _ = study
    no_answer = data.Split(IMAGES, np.full(50, -1, np.int32))
    s = soup.study_of(config, digits()._replace(test=no_answer))
    flat = lanes.initial(s.program, lanes.seed_keys(0, 6)).variables
    found = s.greedy(lanes.split(flat, 2, 3))
    accuracy = s.validate(flat).reshape(2, 3)
    np.testing.assert_allclose(found.scores, accuracy - 1, atol=1e-6)
    assert np.ptp(accuracy, axis=1).all() and not s.test(flat).any()


@pytest.mark.parametrize("average", soup.AVERAGES)
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


@pytest.mark.slow
def test_running_statistics_are_made_anew(tmp_path):
    argv = [*SHORT, "--model", "conv", "--norm", "batch", "--vary", "learning_rate"]
    argv += ["--average", "greedy", "--optimizer", "adam", "--learning-rate", "0.01"]
    soup.main([*argv, "--out", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / folder.SUMMARY).read_text())
    assert summary["running_statistics"] == "recalibrated"
    _, batch_stats, _ = checkpoints.load_model(tmp_path / "run" / folder.MODEL)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(batch_stats))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--children 1", "--children must be at least 2, got 1"),
        ("--vary seed", "unknown --vary 'seed'; choose one of order, weight_decay, length"),
        ("--average best", "unknown --average 'best'; choose one of uniform, greedy"),
        ("--sparsity 98", "--sparsity must be in [0, 1), got 98 (a fraction: did you mean 0.98?)"),
        ("--sparsities 0.9 0.5", "--sparsities must rise, for what is pruned stays pruned; got"),
        ("--sparsities 0.9 1", "--sparsities must be in [0, 1), got 1"),
        ("--phases 0", "--phases must be at least 1, got 0"),
        ("--retrain 0", "--retrain must be in (0, 100], got 0"),
        ("--validation 0", "--validation must be in (0, 1), got 0"),
        ("--weight-decay -1", "--weight-decay must be in [0, inf), got -1"),
        ("--vary weight_decay --weight-decay 0", "--vary weight_decay needs a --weight-decay"),
        ("--train-examples 100 --batch-size 95", "--batch-size 95 is more than all 90 examples"),
        ("--points 4", "--points must be odd"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in running.mistake(soup, capsys, tmp_path, argv.split())


def test_the_sparsity_of_each_phase():
    made = soup.sparsities_of(soup.Config())
    assert made == pytest.approx([0.7286, 0.9263, 0.98], abs=5e-5)
    assert made[-1] == 0.98
    flags.check(soup.Config())


def test_help_tells_all_flags(capsys):
    assert exit_code("--help") == 0
    said = capsys.readouterr().out
    for text in ("{order,weight_decay,length,learning_rate}", "--children", "--sparsities"):
        assert text in said
