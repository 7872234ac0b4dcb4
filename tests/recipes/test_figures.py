"""The pictures of the README from the numbers of runs, and what is said where there are none."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes import figures
from recipes.common import folder
from tests.recipes.running import mistake

SPREAD = {"low": 0.3, "median": 0.35, "high": 0.4}
MATRIX = [[0.0, 0.1, 0.2], [0.1, 0.0, 0.3], [0.2, 0.3, 0.0]]


def cells(**ratios):
    """Those of a benchmark, as summary.json has them."""
    times = {"seconds": {"low": 1e-3, "median": 1e-3, "high": 1e-3}}
    made = {"dense": {**times, "ratio": {}}, "dense (A/A)": {**times, "ratio": {"dense": SPREAD}}}
    return made | {name: {**times, "ratio": {"dense": own}} for name, own in ratios.items()}


@pytest.fixture
def runs(tmp_path):
    """A folder of each recipe, with the numbers that are drawn."""
    arm = lambda step: {"test_accuracy": [0.9, 0.8], "sparsity": [step / 9, step / 9]}
    small = cells(**{"masked to 0.25 of the FLOPs": SPREAD, "compacted to 0.25": SPREAD})
    barrier = {"error_barrier": {"matrix": MATRIX}}
    summaries = {
        "gmp": {"steps": 9},
        "connectivity": {"arms": {"dense": barrier, "sparse": barrier}},
        "bench": {"sections": {"step": {}, "compact lenet 1": {}, "compact lenet 256": {}}},
    }
    summaries["bench"]["sections"]["compact lenet 256"]["cells"] = small
    summaries["bench"]["sections"]["compact lenet 1"]["cells"] = {}
    for recipe, summary in summaries.items():
        (tmp_path / recipe).mkdir()
        folder.write_json(tmp_path / recipe / folder.SUMMARY, {"recipe": recipe, **summary})
    folder.write(tmp_path / "gmp" / folder.CONFIG, "begin: 0.1\nend: 0.7\n")
    lines = [json.dumps({"step": step, "dense": arm(0), "sparse": arm(step)}) for step in (3, 6, 9)]
    folder.write(tmp_path / "gmp" / folder.METRICS, "\n".join(lines) + "\n")
    return {recipe: tmp_path / recipe for recipe in summaries}


def test_three_pictures(runs, tmp_path):
    drawn = figures.figures(figures.Config(**runs, out=tmp_path / "drawn"))
    assert [path.name for path in drawn] == ["training.png", "barriers.png", "latency.png"]
    for path in drawn:
        with Image.open(path) as image:
            assert np.ptp(np.asarray(image.convert("L"))) > 200


def test_the_largest_batch_is_shown(runs):
    (title, own), *others = figures.compacted(runs["bench"]).items()
    assert title == "LeNet-300-100, batch of 256" and "compacted to 0.25" in own
    assert others == []


@pytest.mark.parametrize("recipe", figures.COMMANDS)
def test_a_run_that_is_not_there(recipe, runs, tmp_path, capsys):
    out = tmp_path / "empty"
    out.mkdir()
    argv = [word for name, path in runs.items() for word in (f"--{name}", str(path))]
    argv += [f"--{recipe}", str(tmp_path / "none"), "--out", str(out)]
    said = mistake(figures, capsys, out, argv)
    assert f"--{recipe} '{tmp_path / 'none'}' holds no finished run" in said
    assert f"python -m recipes.{recipe} " in said and said.endswith("makes one\n")


def test_a_run_of_another_recipe(runs, capsys, tmp_path):
    out = tmp_path / "empty"
    out.mkdir()
    argv = ["--gmp", str(runs["bench"]), "--out", str(out)]
    assert "is a run of recipes.bench: python -m recipes.gmp" in mistake(figures, capsys, out, argv)


def test_a_bench_without_compact(runs, tmp_path):
    folder.write_json(runs["bench"] / folder.SUMMARY, {"recipe": "bench", "sections": {"step": {}}})
    with pytest.raises(figures.RecipeError, match="has not timed `compact`"):
        figures.compacted(runs["bench"])
