"""Kills at random moments, and what comes of the runs: see tests/campaign.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.full
def test_killed_runs_end_as_if_they_had_not_been():
    """Nine kills, in a process that has not started JAX."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.campaign", "--kills", "3", "--seed", "0"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"(\w+): (\d+) kills", done.stdout) == [
        ("gmp", "3"),
        ("dynamic", "3"),
        ("soup", "3"),
    ]
    inside = [int(n) for n in re.findall(r"(\d+) of them inside a save", done.stdout)]
    assert sum(inside) >= 3, done.stdout
