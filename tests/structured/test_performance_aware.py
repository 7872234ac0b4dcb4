"""Groups lose neurons while the losses allow it: numbers by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.structured import allowances, performance_aware


def test_allowances_multiply_to_the_growth():
    of = allowances(10)
    assert of[0] == 0.05 and of[1] / of[0] == pytest.approx(1.2662, abs=5e-5)
    for n, growth, first in ((1, 5.0, 0.05), (2, 1.2, 0.1), (30, 5.0, 0.05), (4, 1.2, 0.1)):
        assert math.prod(1 + r for r in allowances(n, growth, first)) == pytest.approx(growth)


def network():
    """Two layers of ten neurons; a neuron of `a` costs a tenth of the loss, of `b` a hundredth."""
    params = {"a": jnp.ones((2, 10)), "b": jnp.ones((10, 10)), "c": jnp.ones((10, 3))}
    fn = lambda p, x: x @ p["a"] @ p["b"] @ p["c"]
    structure = jp.analyze(fn, params, jnp.ones((1, 2)))
    gone = lambda p, name: (p[name] == 0).all(0).sum()
    loss = lambda p: 1 + 0.1 * gone(p, "a") + 0.01 * gone(p, "b")
    scores = {"a": jnp.arange(10.0), "b": jnp.arange(10.0)[::-1]}
    return structure, params, scores, loss


def test_each_group_loses_what_its_allowance_allows():
    structure, params, scores, loss = network()
    kept = performance_aware(structure, params, scores, loss, growth=1.5, first=0.2)
    # a neuron of 'b' saves 13 products and one of 'a' 12, so 'b' comes first: nine of its neurons
    # cost less than 0.2; then 1.09 may grow by 0.25, which is two neurons of 'a'
    assert np.flatnonzero(~np.asarray(kept["b"])).tolist() == [*range(1, 10)]
    assert np.flatnonzero(~np.asarray(kept["a"])).tolist() == [0, 1]


def test_the_worst_task_decides():
    structure, params, scores, loss = network()
    both = lambda p: jnp.stack([jnp.float32(1), loss(p)])
    alone = performance_aware(structure, params, scores, loss, growth=1.5, first=0.2)
    worst = performance_aware(structure, params, scores, both, growth=1.5, first=0.2)
    assert all((alone[name] == worst[name]).all() for name in alone)


def test_only_the_best_groups_stay_pruned():
    structure, params, scores, loss = network()
    how = {"growth": 1.5, "first": 0.2}
    kept = performance_aware(structure, params, scores, loss, share=0.5, **how)
    assert kept["a"].all() and not kept["b"].all()  # 'b' costs a tenth of the loss


def test_a_loss_that_allows_nothing_keeps_all_and_nan_is_not_within():
    structure, params, scores, _ = network()
    for lost in (100.0, jnp.nan):
        loss = lambda p, lost=lost: jnp.where((p["c"] == 1).all() & (p["b"] == 1).all(), 1.0, lost)
        kept = performance_aware(structure, params, scores, loss)
        assert all(mask.all() for mask in kept.values())


def test_groups_that_are_not_named_keep_all():
    structure, params, scores, loss = network()
    kept = performance_aware(structure, params, scores, loss, groups=["b"])
    assert kept["a"].all() and int(kept["b"].sum()) == 1


def test_mistakes():
    structure, params, scores, loss = network()
    with pytest.raises(ValueError, match=r"growth > 1 \+ first > 1; got n=2, growth=1.05"):
        performance_aware(structure, params, scores, loss, growth=1.05)
    with pytest.raises(ValueError, match=r"share is in \(0, 1\]; got 0"):
        performance_aware(structure, params, scores, loss, share=0)
    with pytest.raises(ValueError, match=r"ratios rise, in \(0, 1\); got \(0.5, 0.5\)"):
        performance_aware(structure, params, scores, loss, ratios=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"positive and finite.*got \[0.0\] before"):
        performance_aware(structure, params, scores, lambda p: 0.0)
    with pytest.raises(ValueError, match="there is no group"):
        performance_aware(structure, params, {**scores, "z": jnp.ones(3)}, loss)
