"""The figure of accuracy against weights left, by what is drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from recipes.common.figures import left, style

DENSE = np.array([0.9, 0.92])
CURVES = {
    "ltr": ([0.5, 0.1], np.array([[0.9, 0.95], [0.1, 0.1]])),
    "random": ([0.5, 0.1], np.array([[0.8, 0.85], [0.3, 0.4]])),
}


@pytest.fixture
def drawn(monkeypatch):
    """The axes of a figure."""
    figures = []
    monkeypatch.setattr(style, "png", lambda figure: figures.append(figure) or b"")
    left.weights_left(CURVES, DENSE)
    return figures[0].axes


def test_it_is_a_png():
    assert left.weights_left(CURVES, DENSE).startswith(b"\x89PNG")


def test_few_weights_are_on_the_right_of_a_log_axis(drawn):
    for axes in drawn:
        first, last = axes.get_xlim()
        assert first > 50 > 10 > last and axes.get_xscale() == "log"


def test_lines_are_means_in_percent(drawn):
    lines = {line.get_label(): line.get_xydata() for line in drawn[0].get_lines()}
    np.testing.assert_allclose(lines["ltr"], [[50, 92.5], [10, 10]])
    np.testing.assert_allclose(lines["dense"][:, 1], 91)


def test_the_second_panel_is_near_dense(drawn):
    low, high = drawn[1].get_ylim()
    assert low == pytest.approx(88) and 95 < high < 96


def test_a_short_axis_has_more_ticks():
    for shares, ticks in (([0.5, 0.25], [50, 35, 25]), ([0.5, 0.1], [50, 20, 10])):
        axes = Figure().subplots()
        left.percent_axis(axes, shares)
        assert axes.get_xticks().tolist() == ticks


def test_flops_are_told_when_pruned_and_trained_on(monkeypatch):
    figures = []
    monkeypatch.setattr(style, "png", lambda figure: figures.append(figure) or b"")
    lower = {"ltr": (CURVES["ltr"][0], CURVES["ltr"][1] - 0.1)}
    left.flops_left(lower, {"ltr": CURVES["ltr"]}, DENSE, [0.5, 0.1])
    for axes, first in zip(figures[0].axes, (82.5, 92.5), strict=True):
        lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
        np.testing.assert_allclose(lines["ltr"][0], [50, first])
        assert axes.get_xticks().tolist() == [50, 10]
