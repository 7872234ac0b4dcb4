"""Drop points by both rules."""

import numpy as np
import pytest

import jaxprune as jp

AT = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
SCORES = [84.5, 84.6, 84.4, 84.3, 84.1, 83, 79, 66]


def test_the_worked_example():
    assert jp.analysis.drop_point(AT, SCORES) == (0.4, 0.6)
    assert jp.analysis.drop_point(AT, SCORES, tolerance=1.5).within == 0.5


def test_what_falls_and_recovers_is_not_within():
    assert jp.analysis.drop_point([0, 0.5, 0.9], [90, 80, 90]).within == 0


def test_slopes_count_where_points_are_not_evenly_spaced():
    # a straight line, and a bend at .8
    line = lambda s: 100 - 10 * s - 500 * max(s - 0.8, 0)
    at = [0, 0.5, 0.6, 0.8, 0.81, 0.9]
    assert jp.analysis.drop_point(at, [line(s) for s in at]).sharpest == 0.8


@pytest.mark.parametrize(
    ("at", "scores", "message"),
    [
        ([0, 0.5], [1, 2], "at least three numbers"),
        ([0, 0.5, 0.9], [1, 2], r"got shapes \(3,\) and \(2,\)"),
        ([0, 0.9, 0.5], [1, 2, 3], "sparsities must rise"),
        ([0, 0.5, 0.9], [1, np.nan, 3], "scores be finite"),
    ],
)
def test_what_cannot_be_is_told(at, scores, message):
    with pytest.raises(ValueError, match=message):
        jp.analysis.drop_point(at, scores)
