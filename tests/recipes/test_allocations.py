"""Trained networks pruned at once: exact counts, and what each rule shares among layers."""

import numpy as np
import pytest

from tests.recipes import running
from tests.recipes.cases import CASES

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "allocations"
    flags = "--steps 60 --log-every 20 --train-examples 1000"  # the last of equal flags counts
    return running.made(CASES["allocations"], flags, out)


def test_counts_layers_and_curves(finished):
    arms = finished.summary["arms"]
    weights = 64 * 256 + 256 * 128 + 128 * 10
    assert list(arms)[:3] == ["dense", "uniform 50 %", "uniform 80 %"] and len(arms) == 13
    for name, numbers in arms.items():
        if name == "dense":
            continue
        wanted = weights * (0.5 if name.endswith("50 %") else 0.8)
        for kept in numbers["kept_weights"]:
            gone = weights - kept
            # rd prunes in steps of a tenth of each layer, at least as much as asked for
            assert abs(gone - wanted) <= 3 or (name.startswith("rd") and gone >= wanted)
    shared = lambda name: np.mean([*arms[name]["layers"].values()], axis=1)
    np.testing.assert_allclose(shared("uniform 80 %"), 0.2, atol=1e-3)
    for name in ("erk", "lamp", "rd", "slope"):  # the small last layer stays denser
        assert shared(f"{name} 80 %")[2] > 0.3, name


def test_lower_distortion_is_higher_accuracy(finished):
    mean = lambda name: finished.summary["arms"][f"{name} 80 %"]["test_accuracy"]["mean"]
    assert min(mean("rd"), mean("slope")) > max(mean("uniform"), mean("global"))
