"""d numbers and a seed are the network, and the intrinsic dimension lies between two dims."""

import jax
import numpy as np
import pytest

from recipes import intrinsic
from recipes.common import folder
from recipes.reports.intrinsic import first_at, in_words
from tests.recipes import running


@pytest.mark.parametrize(
    ("accuracy", "found"),
    [([0.2, 0.5, 0.9], 10**1.5), ([0.7, 0.8, 0.9], 10), ([0.1, 0.2, 0.3], None)],
)
def test_the_first_d_that_is_enough(accuracy, found):
    """The goal 0.6 lies at the half of the way from 10 to 100 where accuracies are 0.5 and 0.7."""
    dims = [10, 100, 1000]
    assert first_at(dims, np.array([0.5, 0.7, 0.9]), 0.6) == pytest.approx(10**1.5)
    value = first_at(dims, np.array(accuracy), 0.7)
    assert value == (pytest.approx(found if found != 10**1.5 else 10**2.5) if found else None)


def test_the_dimension_in_words():
    assert in_words([300.0, 500.0], [10, 1000]) == "400 ± 141"
    assert in_words([300.0, None], [10, 1000]) == "above 1,000 in 1 of 2 seeds"
    assert in_words([10.0, 10.0], [10, 1000]) == "at most 10"


@pytest.mark.full
def test_the_file_of_numbers_and_a_seed_is_the_network(run):
    done = run("intrinsic")
    file = done.out / intrinsic.COMPRESSED
    held = np.load(file)
    assert held["points"].shape == (2, 32) and held["seed"] == 0
    params = intrinsic.decompressed(intrinsic.study_of(again(done)), file)
    saved, batch_stats, _ = done.model("d-32")
    for a, b in zip(*map(jax.tree.leaves, (params, saved)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    told = done.summary["arms"]["d-32"]["test_accuracy"]["per_seed"]
    assert running.accuracies(done.out, params, batch_stats) == told


@pytest.mark.full
def test_fewer_dimensions_move_less(run):
    """All subspaces start at the same weights; the first 4 directions are among the 32."""
    done = run("intrinsic")
    study = intrinsic.study_of(again(done))
    first = intrinsic.lanes.initial(intrinsic.subspace(study), study.keys).params
    moved = {}
    for d in (4, 32):
        params, _, _ = done.model(f"d-{d}")
        apart = jax.tree.map(lambda a, b: np.asarray(a - b).reshape(2, -1), params, first)
        moved[d] = np.concatenate(jax.tree.leaves(apart), axis=1)
        assert np.linalg.norm(moved[d], axis=1).min() > 0
    held = np.load(done.out / intrinsic.COMPRESSED)
    lengths = np.linalg.norm(held["points"], axis=1)
    np.testing.assert_allclose(np.linalg.norm(moved[32], axis=1), lengths, rtol=0.1)


def again(done):
    """The configuration of a run, for another folder."""
    return intrinsic.Config(**{**vars(done.config), "out": done.out / folder.MODEL / "none"})
