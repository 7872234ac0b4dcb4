"""The recipe end to end, in this process: what it writes, and what it refuses."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import landscape
from recipes.common import data, folder, models
from recipes.reports.landscape import ARRAYS
from tests.recipes import running

SHORT = "--steps 6 --train-examples 256 --every 2 --evaluations 2 --examples 100 --points 5 "
SHORT += "--eigenvalues 3 --lanczos-steps 6 --density-probes 2 --trace-probes 3"


exit_code = partial(running.exit_code, landscape)


@pytest.fixture(scope="module")
def measured_on():
    """The splits that losses were measured on, and on how many examples of each."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, measured_on):
    """The folder of a short run."""
    out, losses_on = tmp_path_factory.mktemp("runs") / "landscape", landscape.losses_on

    def watched(module, split, examples):
        measured_on.append((split, examples))
        return losses_on(module, split, examples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landscape, "losses_on", watched)
        landscape.main([*SHORT.split(), "--out", str(out)])
    return out


def summary_of(out):
    return json.loads((out / folder.SUMMARY).read_text())


def test_it_writes_everything(finished):
    names = ["config.yaml", "metrics.jsonl", "model", "plots", "report.md", "summary.json"]
    assert sorted(path.name for path in finished.iterdir()) == names
    pictures = ["alignment.png", "around.png", "curvature.png", "seeds.png"]
    assert sorted(p.name for p in (finished / "plots").glob("*.png")) == pictures
    report = (finished / "report.md").read_text()
    for said in ("| largest eigenvalue |", "| loss barrier, after matching |", *pictures):
        assert said in report


def test_the_summary(finished):
    summary = summary_of(finished)
    assert summary["seeds"] == 3 and summary["steps"] == 6
    for arm, weights in (("dense", 50_826), ("sparse", 50_826 - round(0.95 * 50_432))):
        own = summary["arms"][arm]
        assert own["weights"] == weights
        values = np.array(own["eigenvalues"])
        assert values.shape == (3, 3) and (np.diff(values, axis=1) <= 0).all()
        assert own["largest_eigenvalue"]["per_seed"] == values[:, 0].tolist()
        assert len(own["loss_barrier_before_matching"]["per_seed"]) == 3  # pairs
        per_weight = own["trace"]["mean"] / weights
        assert own["trace_per_weight"]["mean"] == pytest.approx(per_weight)
    before, after = (
        summary["arms"]["sparse"][f"mask_overlap_{w}_matching"] for w in ("before", "after")
    )
    assert 0 < before["mean"] < after["mean"] < 1
    assert "mask_overlap_before_matching" not in summary["arms"]["dense"]
    assert summary["hessian_vector_product"]["ratio"] > 0


def test_the_arrays_are_what_the_plots_show(finished):
    arrays = np.load(finished / ARRAYS)
    for arm in ("dense", "sparse"):
        for name in ("seeds", "around", "alignment"):
            assert arrays[f"{arm}/{name}/losses"].shape == (5, 5)
        marks = arrays[f"{arm}/seeds/marks"]
        np.testing.assert_allclose(marks[0], (0, 0), atol=1e-5)
        assert marks[1, 0] > 0 and abs(marks[1, 1]) < 1e-4 and marks[2, 1] > 0
        assert arrays[f"{arm}/spectrum/nodes"].shape == (3, 2, 6)
        around = arrays[f"{arm}/around/losses"]
        assert around[2, 2] == around.min() or around[2, 2] < around.mean()


def test_losses_are_those_of_training_data(finished, measured_on):
    """Of a short run at 95 % the losses on both splits are alike: they can't tell which it was."""
    ((split, examples),) = measured_on
    train = data.load("digits", train_examples=256).train
    assert examples == 100
    np.testing.assert_array_equal(split.labels, train.labels)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "landscape"
    argv = [*SHORT.split(), "--log-every", "2", "--out", str(out)]
    assert running.interrupted(landscape, monkeypatch, argv, step=2) == 130
    assert f"python -m recipes.landscape --out {out} --resume" in capsys.readouterr().err
    landscape.main(["--out", str(out), "--resume"])
    for arm in ("dense", "sparse"):
        a, b = (np.array(summary_of(f)["arms"][arm]["eigenvalues"]) for f in (out, finished))
        np.testing.assert_allclose(a, b, rtol=1e-3)
    assert not (out / folder.CHECKPOINT).exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--seeds 2", "--seeds must be at least 3, got 2"),
        ("--points 4", "--points must be odd, so that the middle is one of them; got 4"),
        ("--points 1", "--points must be at least 3, got 1"),
        ("--examples 2000", "--examples 2000 is more than all 1,437 examples"),
        ("--examples 0", "--examples must be at least 1, got 0"),
        ("--reach 0", "--reach must be in (0, inf), got 0"),
        ("--eigenvalues 70", "--lanczos-steps must be at least 70, got 60"),
        ("--eigenvalues 0", "--eigenvalues must be at least 1, got 0"),
        ("--trace-probes 1", "--trace-probes must be at least 2, got 1"),
        ("--density-probes 0", "--density-probes must be at least 1, got 0"),
        ("--sparsity 0.999 --lanczos-steps 500", "is more than the 444 weights that --sparsity"),
        ("--sparsity 95", "--sparsity must be in [0, 1), got 95 (a fraction: did you mean 0.95?)"),
        ("--model conv --norm batch", "--norm batch has running statistics"),
        ("--model vgg", "unknown --model 'vgg'"),
        ("--dataset mnist --data-dir /nowhere", "--data-dir '/nowhere' is not a folder"),
        ("--steps 1", "must be at least 2, got 1"),
        ("--resume", "config.yaml"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert message in running.mistake(landscape, capsys, tmp_path, argv.split())


def test_a_finished_run_is_kept(finished, capsys):
    before = (finished / folder.SUMMARY).read_bytes()
    assert exit_code(*SHORT.split(), "--out", str(finished)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (finished / folder.SUMMARY).read_bytes() == before


def test_the_help_says_what_each_flag_is(capsys):
    assert exit_code("--help") == 0
    said = capsys.readouterr().out
    assert "--lanczos-steps INT" in said and "Hessian-vector products" in said


def test_the_losses_of_a_convolutional_network_have_second_derivatives():
    module = models.model("conv", 10)
    images = np.asarray(jax.random.normal(jax.random.key(0), (6, 8, 8, 1)))
    split = data.Split(images, np.arange(6, dtype=np.int32))
    losses = landscape.losses_on(module, split, 5)
    params = module.init(jax.random.key(1), images[:1])["params"]
    product = jp.analysis.hvp(losses.loss, params, params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(product))
    assert losses.both(params)["loss"] == pytest.approx(float(losses.loss(params)), rel=1e-6)


def test_the_barrier_is_above_the_chord():
    alphas = np.linspace(0, 1, 3)
    assert landscape.above_chord(alphas, np.array([1.0, 3.0, 2.0])) == 1.5
    assert landscape.above_chord(alphas, np.array([1.0, 1.0, 2.0])) == 0.0
