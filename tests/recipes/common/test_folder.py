"""The folder of a run: what it refuses, and that files are whole or absent."""

import json
import math

import pytest

from recipes.common import folder
from recipes.common.folder import RecipeError


def test_a_new_or_empty_folder_is_fine(tmp_path):
    folder.check_out(tmp_path)
    folder.check_out(tmp_path / "deep" / "er")
    assert not (tmp_path / "deep").exists()


def test_a_run_is_not_overwritten_unasked(tmp_path):
    folder.start(tmp_path, "seed: 0\n")
    with pytest.raises(RecipeError, match=r"already holds a run.*--overwrite"):
        folder.check_out(tmp_path)
    folder.check_out(tmp_path, overwrite=True)


def test_overwrite_replaces_the_run_and_nothing_else(tmp_path):
    folder.start(tmp_path, "seed: 0\n")
    folder.append(tmp_path / folder.METRICS, {"step": 1})
    folder.write(tmp_path / folder.PLOTS / "x.png", b"png")
    (tmp_path / "notes.txt").write_text("mine")
    for name in (folder.MODEL, folder.CHECKPOINT, folder.BEST):  # what --resume would go on from
        (tmp_path / name / "7").mkdir(parents=True)
    folder.write_json(tmp_path / folder.SUMMARY, {})
    folder.write(tmp_path / folder.REPORT, "")
    folder.start(tmp_path, "seed: 1\n", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [folder.CONFIG, "notes.txt"]
    assert (tmp_path / folder.CONFIG).read_text() == "seed: 1\n"


def test_a_run_that_was_made_in_the_meantime_is_not_overwritten(tmp_path):
    """Two begin together; one reads its data, while the other makes its run and finishes it."""
    folder.check_out(tmp_path)
    folder.start(tmp_path, "run: fast\n")
    folder.unlock(tmp_path)
    with pytest.raises(RecipeError, match=r"already holds a run.*--overwrite"):
        folder.start(tmp_path, "run: slow\n")
    assert (tmp_path / folder.CONFIG).read_text() == "run: fast\n"


def test_a_folder_with_other_things_is_never_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    for overwrite in (False, True):
        with pytest.raises(RecipeError, match="not empty, and not a run"):
            folder.check_out(tmp_path, overwrite=overwrite)


def test_a_file_or_an_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="is a file; choose a folder"):
        folder.check_out(tmp_path / "file")
    with pytest.raises(RecipeError, match="not writable"):
        folder.check_out(tmp_path / "file" / "below")
    with pytest.raises(RecipeError, match="not writable"):
        folder.start(tmp_path / "file" / "below", "")


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(RecipeError, match=r"--resume finds no run: there is no '.*config\.yaml'"):
        folder.check_out(tmp_path, resume=True)
    folder.start(tmp_path, "")
    folder.check_out(tmp_path, resume=True)
    folder.write_json(tmp_path / folder.SUMMARY, {})
    with pytest.raises(RecipeError, match=r"the run in '.*' is finished; repeat it with --config"):
        folder.check_out(tmp_path, resume=True)
    (tmp_path / folder.CHECKPOINT).mkdir()  # killed just before its end
    folder.check_out(tmp_path, resume=True)


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    (tmp_path / ".config.yaml.123.tmp").write_text("see")
    folder.check_out(tmp_path)
    folder.start(tmp_path, "seed: 0\n")
    assert [path.name for path in tmp_path.iterdir()] == [folder.CONFIG]


def test_a_file_that_fails_is_absent(tmp_path):
    with pytest.raises(RecipeError, match=r"arms/1/loss is nan or inf, and JSON .* lower --learn"):
        folder.write_json(tmp_path / "summary.json", {"arms": [{}, {"loss": math.nan}]})
    assert list(tmp_path.iterdir()) == []


def test_lines(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert folder.read_lines(file) == []
    folder.append(file, {"step": 1})
    folder.append(file, {"step": 2})
    assert folder.read_lines(file) == [{"step": 1}, {"step": 2}]
    folder.write_json(tmp_path / "summary.json", {"a": [1, 2]})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": [1, 2]}
