"""Students of a pruned network: calibration by hand, and what a finished run has."""

import numpy as np
import pytest

from recipes.common import confidence, data, small


def logits_of(*probabilities):
    """Logits of two classes whose first has these probabilities."""
    first = np.log(np.array(probabilities))
    return np.stack([first, np.log(1 - np.array(probabilities))], -1)


def test_the_calibration_error_by_hand():
    """Bins (.5, .75] and (.75, 1]: .6 and .7 with one right of two, .9 and .8 with both right."""
    logits, labels = logits_of(0.6, 0.7, 0.9, 0.2), np.array([0, 1, 0, 1])
    wanted = 0.5 * abs(0.5 - 0.65) + 0.5 * abs(1 - 0.85)
    assert confidence.calibration_error(logits, labels, bins=4) == pytest.approx(wanted)
    sure = 1e3 * np.eye(3)
    assert confidence.calibration_error(sure, np.arange(3)) == 0
    assert confidence.calibration_error(sure, np.array([1, 2, 0])) == 1


def test_what_is_told_of_a_network():
    logits, labels = logits_of(0.6, 0.7, 0.9, 0.2), np.array([0, 1, 0, 1])
    told = confidence.judged(logits, labels, teacher=logits_of(0.6, 0.7, 0.4, 0.2))
    assert told["test_accuracy"] == 0.75 and told["as_teacher"] == 0.75
    assert told["overconfidence"] == pytest.approx((0.6 + 0.7 + 0.9 + 0.8) / 4 - 0.75)
    assert told["loss"] == pytest.approx(-np.log([0.6, 0.3, 0.9, 0.8]).mean())


@pytest.mark.full
def test_saved_students_are_as_small_and_as_good_as_told(run):
    """The networks on disk, read anew, answer test data as the summary says."""
    finished = run("distill_pruned")
    summary, test = finished.summary, data.load("digits", train_examples=256).test
    assert all(0.1 < share <= 0.25 for share in summary["flops_left"])
    assert summary["layers"] == ["Dense_1/kernel", "Dense_2/kernel"]
    student = small.load(finished.out / "model" / "fitnets", seed=1)
    right = (student.fn(student.params, test.images).argmax(-1) == test.labels).mean()
    told = summary["networks"]["fitnets"]["test_accuracy"]["per_seed"][1]
    assert told == pytest.approx(float(right), abs=1e-4)
    others = [summary["networks"][arm]["loss"]["per_seed"] for arm in ("fitnets", "hinton")]
    assert others[0] != others[1] and summary["networks"]["dense"]["as_teacher"]["mean"] == 1
