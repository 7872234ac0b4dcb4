"""Families are averaged where they should be, and arms see the same examples."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxprune as jp
from recipes.common import data, lanes
from recipes.gmp_soup import Config, at_a_prune, averaged, first_state, lane_of, study_of
from recipes.reports.gmp_soup import ALONE, ARMS, DENSE, SOUP

SHORT: dict[str, Any] = {"seeds": 2, "children": 2, "steps": 10, "prunes": 2, "width": 0.25}


@pytest.fixture(scope="module")
def study():
    config = Config(**SHORT, sparsity=0.75, batch_size=32, begin=0.2, end=0.6, train_examples=64)
    return study_of(config, data.load("digits", train_examples=64))


@pytest.fixture(scope="module")
def first(study):
    """Before training, and each network moved by its place, as if it had trained."""
    state = first_state(study)
    place = lambda w: np.arange(len(w), dtype=np.float32).reshape(-1, *[1] * (w.ndim - 1))
    moved = jax.tree.map(lambda w: w + 0.001 * place(w), state.params)
    return state._replace(params=moved)


def test_prunes_follow_the_cubic(study):
    assert study.at == [2, 6]
    np.testing.assert_allclose(study.sparsities, [0.75 * (1 - 1 / 8), 0.75])


def test_children_see_other_examples_and_arms_the_same(study):
    order = jax.random.key_data(lane_of(study, 0).order).reshape(3, 4, -1)
    assert len(np.unique(order[0], axis=0)) == 4
    np.testing.assert_array_equal(order[0], order[1])
    assert (order[0] != jax.random.key_data(lane_of(study, 1).order).reshape(3, 4, -1)[0]).any()


def test_the_average_of_two_children(first):
    """Of places 0 and 1 it is 0.5 thousandths above the first weights of both."""
    kernel = lambda state: np.asarray(state.params["Dense_0"]["kernel"])
    one, before = kernel(averaged(first, 2)), kernel(first)
    np.testing.assert_array_equal(one[0], one[1])
    np.testing.assert_allclose(one[0], before[:2].mean(0), atol=1e-6)
    assert averaged(first, 2).opt_state.step.shape == (12,)


def test_arms_differ_in_what_they_do_at_a_prune(study, first):
    def pairs(state):
        kernel = np.asarray(state.params["Dense_1"]["kernel"]).reshape(3, 2, 2, -1)
        same = dict(zip(ARMS, (kernel[:, :, 0] == kernel[:, :, 1]).all((1, 2)), strict=True))
        masks = jp.get_masks(state.opt_state)
        parts = (lanes.part(masks, 4 * i, 4 * i + 4) for i in range(3))
        return same, dict(zip(ARMS, (float(jp.sparsity(x)) for x in parts), strict=True))

    same, sparsity = pairs(at_a_prune(study, 0, first))
    assert same == {SOUP: True, ALONE: False, DENSE: False}
    cubic = pytest.approx(study.sparsities[0], abs=1e-3)
    assert sparsity == {SOUP: cubic, ALONE: cubic, DENSE: 0}
    same, sparsity = pairs(at_a_prune(study, 1, first))
    assert same == {SOUP: True, ALONE: False, DENSE: True}
    assert sparsity == dict.fromkeys(ARMS, pytest.approx(0.75, abs=1e-3))


def test_children_begin_alike_unless_their_first_weights_vary(study):
    kernel = lambda s: np.asarray(first_state(s).params["Dense_0"]["kernel"]).reshape(3, 2, 2, -1)
    alike = kernel(study)
    np.testing.assert_array_equal(alike[:, :, 0], alike[:, :, 1])
    assert (alike[:, 0] != alike[:, 1]).any()
    vary = study._replace(config=Config(**SHORT, vary="init"))
    assert (kernel(vary)[:, :, 0] != kernel(vary)[:, :, 1]).any()


@pytest.mark.full
def test_the_summary_tells_averages_and_children(run):
    done = run("gmp_soup")
    last = done.records[-1]
    for arm in ARMS:
        told = done.summary["arms"][arm]
        assert told["test_accuracy"]["average"]["per_seed"] == last[arm]["average"]
        mean = np.mean(last[arm]["children"], 1)
        assert told["test_accuracy"]["mean child"]["per_seed"] == pytest.approx(mean.tolist())
        *_, masks = done.model(f"{arm.replace(' ', '-')}-children")
        kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
        assert told["kept_weights"] == [kept // 4] * 2
        more = [
            wide > own
            for wide, own in zip(told["kept_by_average"], told["kept_weights"], strict=True)
        ]
        assert more == [arm == ALONE] * 2
    assert [told["step"] for told in done.summary["at_prunes"]] == [2, 6]
