"""The published network: a tiny run, the scores, its mistakes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from recipes import published
from recipes.common import folder, magika
from recipes.common.folder import RecipeError
from recipes.common.magika import Magika
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


@pytest.mark.full
def test_it_writes_a_table_and_a_network(tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("magika")
    flags = (
        "--files recipes tests .docs --test-files 6 --calibration 2 --steps 2 --batch-size 2"
        " --seeds 2 --rounds 1 --per-extension 8"
    )
    published.main([*flags.split(), "--out", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / folder.SUMMARY).read_text())
    arms = summary["arms"]
    assert list(arms) == ["full", "pruned", "updated", "tuned", "tuned, 8 bits"]
    assert arms["full"]["same_answers"]["mean"] == 1
    assert len(arms["tuned"]["same_answers"]["per_seed"]) == 2
    assert 0.4 < arms["tuned"]["flops"] / arms["full"]["flops"] <= 0.5
    assert 3.5 < arms["tuned"]["bits"] / arms["tuned, 8 bits"]["bits"] < 4
    assert all(left % 8 == 0 < left < size for left, size in summary["widths"].values())
    assert set(summary["latency"]) >= {"full, JAX", "small, JAX", "small, onnxruntime"}
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
    (tmp_path / "one.txt").write_text("so few files")
    config = published.Config(files=(tmp_path,))
    with pytest.raises(RecipeError, match="1 files are too few for --test-files 1,000"):
        published.study_of(config, magika.load())
