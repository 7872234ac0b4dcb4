"""The recipe that times every pattern: its folder, and its mistakes."""

import json

import pytest

from recipes import which_pattern
from recipes.common import folder
from tests.recipes import running


@pytest.mark.full
def test_it_writes_a_table_and_a_picture(tmp_path, capsys):
    flags = "--shapes 64x64 --batches 4 --sparsities 0.5 0.9 --rounds 1 --cpu-time"
    which_pattern.main([*flags.split(), "--out", str(tmp_path / "run")])
    summary = json.loads((tmp_path / "run" / folder.SUMMARY).read_text())
    assert summary["clock"] == "CPU time of the process" and len(summary["rows"]) == 6
    assert all(len(row["ratios"]) == 2 for row in summary["rows"])
    assert "64x64, batch 4: single weights" in (tmp_path / "run" / folder.REPORT).read_text()
    assert (tmp_path / "run" / which_pattern.PICTURE).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--shapes 64", "--shapes are inputs x outputs, such as 1024x1024, got '64'"),
        ("--sparsities 0.9 0.5", "--sparsities must ascend, got 0.9 0.5"),
        ("--sparsities 1", "--sparsities must be in [0, 1), got 1"),
        ("--batches 0", "--batches must be at least 1, got 0"),
        ("--rounds 0", "--rounds must be at least 1, got 0"),
    ],
)
def test_mistakes_are_one_line(flags, said, capsys):
    assert running.exit_code(which_pattern, *flags.split()) == 2
    assert said in capsys.readouterr().err
