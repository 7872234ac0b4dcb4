"""The published network: a tiny run, the scores, its mistakes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import published
from recipes.common import folder, magika
from recipes.common.files import Files
from recipes.common.folder import RecipeError
from recipes.common.magika import Magika
from recipes.published import Study
from tests.recipes import running


def test_divergence_by_hand():
    """Of (1/2, 1/2) from (1/2, 1/2), and of (1/4, 3/4) from (1/2, 1/2)."""
    p, wanted = jnp.array([[0.5, 0.5], [0.25, 0.75]]), jnp.full((2, 2), 0.5)
    by_hand = (0 + 0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 2
    assert float(published.divergence(p, wanted)) == pytest.approx(by_hand, rel=1e-6)
    sure = jnp.array([[1.0, 0.0]])
    assert float(published.divergence(sure, sure)) == 0


def test_types_by_extension():
    own = Magika(None, None, ("c", "python"), (frozenset({".c", ".h"}), frozenset({".py"})))
    told = magika.by_extension(own, [0, 0, 1, 1, 1], [".c", ".h", ".h", ".py", ".unknown"])
    assert told == 3 / 4  # the last extension is of no type
    assert magika.by_extension(own, [0], [".unknown"]) == 0


def toy(**flags):
    """Rows of 3 numbers to probabilities of 2 types, by 4 channels of which the third is weak."""
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    params = {"a": jnp.asarray(a * np.float32([1, 1, 1e-4, 1])), "b": jnp.asarray(b[:2].T)}
    fn = lambda params, x: jax.nn.softmax(jnp.tanh(x @ params["a"]) @ params["b"])
    x = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    config = published.Config(**{"calibration": 8, "batch_size": 4, "channels": "all", **flags})
    structure, rest = jp.analyze(fn, params, x[:1]), Files([Path(str(i)) for i in range(16)], x)
    return Study(config, None, fn, params, structure, {}, rest, np.asarray(fn(params, x)))


@pytest.mark.parametrize("score", published.SCORES)
def test_the_weak_channel_goes_first(score):
    s = toy(score=score, flops=0.8)
    (kept,) = published.pick(s).values()
    np.testing.assert_array_equal(kept, [True, True, False, True])
    with pytest.raises(RecipeError, match="--flops"):
        published.pick(toy(score=score, flops=0.01))


def test_the_update_and_tuning_bring_the_answers_nearer():
    s = toy(update="obspa", steps=60, learning_rate=0.05, seeds=2)
    kept = {name: np.arange(4) != 0 for name in s.structure.groups}
    wanted, far = s.answers, []
    for config in (published.Config(update="none"), s.config):
        own = jp.compact(s.structure, published.updated(s._replace(config=config), kept), kept)
        far.append(float(published.divergence(own.fn(own.params, s.rest.windows), wanted)))
    tuned, other = published.tune(s, own)
    far.append(float(published.divergence(own.fn(tuned, s.rest.windows), wanted)))
    assert far[0] > 1.2 * far[1] > 2 * far[2]
    assert (other["a"] != tuned["a"]).any()  # the files in another order


def test_every_epoch_reads_each_file_once():
    first, second, rest = np.split(published.batches(7, 3, 5, 0), (2, 4))
    assert [len(np.unique(one)) for one in (first, second)] == [6, 6]  # the seventh fills no batch
    assert rest.shape == (1, 3) and (first != second).any()
    assert (published.batches(7, 3, 5, 1)[:2] != first).any()


def test_answers_of_any_number_of_files():
    s, calls = toy(), []
    found = published.answers(
        lambda params, x: calls.append(x.shape) or s.fn(params, x), s.params, s.rest.windows, ""
    )
    np.testing.assert_allclose(found, s.answers, rtol=1e-6)
    assert calls == [(published.BATCHES[-1], 3)]


@pytest.mark.full
def test_it_writes_a_table_and_a_network(tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("magika")
    flags = (
        "--files recipes .docs/pages --test-files 2 --calibration 2 --steps 2 --batch-size 2"
        " --seeds 2 --rounds 1 --per-extension 4 --channels all --round-to 8"
    )
    published.main([*flags.split(), "--out", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / folder.SUMMARY).read_text())
    arms = summary["arms"]
    assert list(arms) == ["full", "pruned", "tuned", "tuned, 8 bits"]
    assert arms["full"]["same_answers"]["as they come"]["mean"] == 1
    assert len(arms["tuned"]["same_answers"]["of all types"]["per_seed"]) == 2
    assert 0.4 < arms["tuned"]["flops"] / arms["full"]["flops"] <= 0.5
    assert 3.5 < arms["tuned"]["bits"] / arms["tuned, 8 bits"]["bits"] < 4
    widths = summary["widths"].values()
    assert all(left % 8 == 0 < left <= size for left, size in widths)
    assert any(left < size for left, size in widths)
    assert set(summary["latency"]) >= {"full, JAX", "tuned, JAX", "again, onnxruntime"}
    assert "| full / tuned |" in (tmp_path / "run" / folder.REPORT).read_text()
    path = tmp_path / "run" / folder.MODEL / "magika.onnx"
    (told,) = onnxruntime.InferenceSession(str(path)).run(
        None, {"bytes": np.zeros((2, 2048), np.int32)}
    )
    np.testing.assert_allclose(told.sum(1), 1, rtol=1e-5)


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    def said(*flags):
        assert running.exit_code(published, *flags, "--out", str(tmp_path / "run")) == 2
        return capsys.readouterr().err

    assert "--files '/nowhere' is no folder" in said("--files", "/nowhere")
    assert "--flops must be in (0, 1), got 1" in said("--flops", "1")
    assert "--bits must be at least 2, got 1" in said("--bits", "1")
    assert "unknown --score 'wanda'" in said("--score", "wanda")
    monkeypatch.setattr(magika, "find_spec", lambda name: None)
    assert "pip install 'jaxprune[published]'" in said()
    assert not (tmp_path / "run").exists()


def test_few_files(tmp_path):
    pytest.importorskip("magika")
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"so few files: {i}")
    config = published.Config(files=(tmp_path,), test_files=1)
    with pytest.raises(RecipeError, match="2 more files are too few for --test-files 1 and 64"):
        published.study_of(config, magika.load())
