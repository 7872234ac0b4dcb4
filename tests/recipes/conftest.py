"""The short runs, each made once."""

import fcntl
import json
import os

import pytest

from tests.recipes import running
from tests.recipes.cases import CASES


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """run(name): the finished `Run` of a case; all processes of pytest-xdist share one folder."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def finished(name):
        out, counted = shared / f"run-{name}", shared / f"run-{name}.json"
        with open(shared / f"run-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not counted.exists():
                programs = running.made(CASES[name], "--overwrite", out).programs
                counted.write_text(json.dumps(programs))
        return running.Run(CASES[name], out, json.loads(counted.read_text()))

    return finished


@pytest.fixture(scope="module")
def finished(request, run):
    """The short run of the recipe that a file of tests is named after."""
    return run(request.module.__name__.rpartition("test_")[2])
