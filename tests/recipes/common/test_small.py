"""A network that got smaller, in numbers, in a table, in a figure, and on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.structured import Compact
from recipes.common import models, small, timing
from recipes.common.figures import layers, style

NETWORK = {"name": "mlp", "classes": 3, "norm": "group", "width": 1 / 32}  # 8 and 4 neurons
IMAGE = (2, 2, 1)
KEPT = {"params/Dense_0": np.arange(8) % 2 == 0}


@pytest.fixture(scope="module")
def networks():
    """The structure of a network, and the network whole and compacted."""
    module = models.model(**NETWORK)
    structure = jp.analyze(module.apply, *small.shapes_of(module, IMAGE))
    variables = module.init(jax.random.key(0), jnp.ones((1, *IMAGE)))
    compacted = jp.compact(structure, variables, KEPT)
    return structure, {"dense": Compact(variables, module.apply), "half": compacted}


DIFFERENCES = {
    "half": {"largest_difference": [1e-6, 2e-6], "answers_that_differ": [0, 1]},
    "less": {"largest_difference": 1e-7, "answers_that_differ": 2},
}


def test_differences_in_words():
    said = small.difference({"masked_and_compacted": DIFFERENCES})
    assert said == "logits differ by at most 2.0e-06, 3 answers on test data do"


@pytest.fixture(scope="module")
def numbers(networks):
    structure, own = networks
    times = timing.latencies(own, IMAGE, batches=(1, 4), rounds=3, least_seconds=1e-4)
    sizes = {
        "dense": [small.size_of(structure, {})],
        "half": [small.size_of(structure, KEPT)],
    }
    accuracy = {"dense": np.array([0.9]), "half": np.array([0.8])}
    found = small.numbers(sizes, accuracy, DIFFERENCES, times, chance=0.85)
    assert found["masked_and_compacted"] == DIFFERENCES and found["latency"] == times
    return found["networks"], times


@pytest.mark.full
def test_weights_and_flops_are_counted(numbers):
    dense, half = numbers[0]["dense"], numbers[0]["half"]
    assert dense["weights"] == [4 * 8 + 8 + 8 * 4 + 4 + 4 * 3 + 3]
    assert half["weights"] == [4 * 4 + 4 + 4 * 4 + 4 + 4 * 3 + 3]
    assert half["flops"] == [2 * (4 * 4 + 4 * 4 + 4 * 3)]
    assert half["flops_left"] == [44 / 76]
    assert half["widths"] == [{"params/Dense_0": 4, "params/Dense_1": 4}]


def test_running_statistics_are_no_weights():
    module = models.model("conv", 3, "batch", 0.25)
    structure = jp.analyze(module.apply, *small.shapes_of(module, IMAGE))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *IMAGE)))
    weights = sum(w.size for w in jax.tree.leaves(shapes["params"]))
    assert small.size_of(structure, {}).weights == weights


def test_every_network_is_timed_beside_the_first_and_its_control(numbers):
    _, times = numbers
    for by_name in times.values():
        assert list(by_name) == ["dense", "half", "A/A"]
        assert by_name["dense"]["times_as_fast"] == {"median": 1, "low": 1, "high": 1}
        band = by_name["A/A"]["times_as_fast"]
        assert band["low"] <= 1 == band["median"] <= band["high"]
        assert all(0 < own["seconds"]["low"] < 1 for own in by_name.values())


def test_the_table(numbers):
    columns, rows = small.table(*numbers)
    assert columns == ["test accuracy", "weights", "FLOPs", "batch 1", "batch 4"]
    dense, half, control = rows
    assert dense[:4] == ["dense", "90.00 %", "91", "152"] and dense[4].endswith(" ms")
    assert half[:4] == ["half", "80.00 % †", "60.4 %", "57.9 %"] and half[4].endswith("x")
    assert control[:4] == ["A/A", "", "", ""] and "-" in control[4]
    untimed = small.table(numbers[0], {})
    assert [row[0] for row in untimed[1]] == ["dense", "half"]


def test_the_figure_has_a_bar_and_a_dot_for_each_layer(monkeypatch):
    figures = []
    monkeypatch.setattr(style, "png", lambda figure: figures.append(figure) or b"")
    widths = {"params/a": np.array([2, 4]), "params/b": np.array([1, 1])}
    layers.picture({"params/a": 8, "params/b": 4}, {"half": {"l1": widths}})
    (axes,) = figures[0].axes
    assert [bar.get_width() for bar in axes.patches] == [8, 4]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    dots = axes.get_lines()[0].get_xydata()
    np.testing.assert_array_equal(dots, [[3, 0], [1, 1]])


@pytest.mark.full
def test_what_is_saved_is_loaded_without_the_original_weights(networks, tmp_path):
    _, own = networks
    seeds = [({}, own["dense"].params), (KEPT, own["half"].params)]
    small.save(tmp_path / "model", NETWORK, IMAGE, seeds)
    x = jnp.ones((5, *IMAGE))
    for seed, whole in enumerate(own.values()):
        loaded = small.load(tmp_path / "model", seed)
        np.testing.assert_array_equal(loaded.fn(loaded.params, x), whole.fn(whole.params, x))
    assert loaded.params["params"]["Dense_0"]["kernel"].shape == (4, 4)
