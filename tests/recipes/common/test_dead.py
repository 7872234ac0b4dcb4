"""Networks that came to nothing are told of, by every recipe, in the table and under it."""

import numpy as np
import pytest

from recipes import connectivity, gmp
from recipes.common import dead, report


def test_chance_is_the_share_of_the_largest_class_and_its_standard_error():
    labels = np.repeat([0, 1, 2], [40, 30, 30])
    assert dead.chance(labels) == pytest.approx(0.4 + np.sqrt(0.4 * 0.6 / 100))
    assert dead.chance(np.zeros(5, int)) == 1.0


def test_an_accuracy_carries_the_signs_of_the_dead():
    masks = {
        "a": {"kernel": np.array([[0, 1], [0, 0]], bool), "bias": None},
        "b": {"kernel": np.array([[1, 1], [1, 0]], bool)},
    }
    empty = dead.empty_layers(masks)
    assert empty == {"a/kernel": 1}
    numbers = report.accuracy([0.1, 0.9], chance=0.1, empty_layers=empty)
    assert numbers["at_chance"] == [True, False] and numbers["empty_layers"] == empty
    assert report.percent(numbers) == "50.00 ± 56.57 % †"
    assert report.percent(report.accuracy([0.2, 0.2], 0.1, empty)) == "20.00 ± 0.00 % †"
    assert report.percent(report.accuracy([0.2, 0.2], 0.1)) == "20.00 ± 0.00 %"


def test_every_accuracy_of_a_summary_is_told_of_by_name():
    alive, chance = report.accuracy([0.9, 0.9], 0.1), report.accuracy([0.1, 0.9], 0.1)
    empty = report.accuracy([0.9, 0.9], 0.1, {"a/kernel": 2})
    summary = {
        "chance": 0.1,
        "arms": {"dense": {"test_accuracy": alive}, "gmp": {"test_accuracy": chance}},
        "phases": [{"phase": 1, "test_accuracy": {"soup": alive, "IMP": empty}}],
        "seconds": [1.0],
    }
    assert dead.told(summary) == [
        "† gmp: 1 of 2 seeds at chance (test accuracy of 10.0 % or less)",
        "† phases, phase 1, IMP: a/kernel keeps no weight in 2 of 2 seeds",
    ]
    with pytest.raises(KeyError, match="at_chance"):  # no recipe can leave them out
        dead.told({"chance": 0.1, "arms": {"a": {"test_accuracy": report.over_seeds([0.9])}}})


SHORT = ["--seeds", "2", "--steps", "6", "--train-examples", "256", "--every", "1"]


@pytest.mark.full
def test_a_dead_network_is_no_result(tmp_path, capsys):
    """99.99 % of 50,432 weights are pruned: two of three layers keep nothing."""
    out = tmp_path / "gmp"
    gmp.main([*SHORT, "--evaluations", "1", "--sparsity", "0.9999", "--out", str(out)])
    said = " ".join(capsys.readouterr().out.split())
    page = (out / "report.md").read_text()
    for text in (said, " ".join(page.split())):
        assert "† sparse: 2 of 2 seeds at chance (test accuracy of 11.9 % or less); Dense_" in text
        assert "kernel keeps no weight in 2 of 2 seeds" in text
    assert "% † |" in page


@pytest.mark.full
def test_there_are_no_barriers_at_chance(tmp_path):
    out = tmp_path / "connectivity"
    flags = ["--sparsity", "0.9999", "--points", "3", "--curve-steps", "0", "--evaluations", "1"]
    connectivity.main([*SHORT, *flags, "--out", str(out)])
    rows = {
        row.split("|")[1].strip(): row.split("|")[3].strip()
        for row in (out / "report.md").read_text().splitlines()
        if row.startswith("| ")
    }
    for name in ("error barrier", "loss barrier", "pairs below 2 points"):
        assert rows[name] == "n/a"
    assert rows["groups of connected seeds"] == "n/a"
