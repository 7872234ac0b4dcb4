"""One slope for all leaves, beside all choices; and the curves by a quadratic, by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.calibration.quadratic import distortion

RATES = np.linspace(0, 1, 5)
CURVES = {"a": 16 * RATES**2, "b": 48 * RATES**2}
SCORES = {"a": np.arange(4.0), "b": np.arange(4.0)}


def test_the_worked_numbers_of_the_second_order_term():
    """The card: g'd = -0.05, so half of its square is 0.00125."""
    g, d = jnp.array([0.1, -0.2, 0.3]), -jnp.array([1.0, 1.0, 0.5])
    first = np.mean(np.square([0.1, -0.2, 0.15]))
    assert distortion(d, g) == pytest.approx(first + 0.00125 + 0.5e-7 * 2.25, rel=1e-5)


def test_slopes_by_hand():
    # by weight a costs 1, 3, 5, 7 and b 3, 9, 15, 21
    of = jp.allocation.common_slope(CURVES, least_kept=0.0)
    assert of(SCORES, 1) == {"a": 0.25, "b": 0.0}
    assert of(SCORES, 3) == {"a": 0.5, "b": 0.25}
    assert of(SCORES, 2) == {"a": 0.375, "b": 0.125}  # halfway: equal slopes go together
    assert of(SCORES, 0.5) == {"a": 0.75, "b": 0.25}
    masks = jp.select(SCORES, of, 0.5)
    assert (int((~masks["a"]).sum()), int((~masks["b"]).sum())) == (3, 1)


def test_a_leaf_that_takes_more_power_is_pruned_more():
    # the steepest slopes by sparsity are 28 and 84, their mean 56; that of the power is 2
    of = jp.allocation.common_slope(CURVES, power={"a": 1.0, "b": 3.0}, least_kept=0.0)
    # by weight a costs 1 - 7, 3 - 7, 5 - 7, 7 - 7, and b 3 - 21, 9 - 21, 15 - 21, 21 - 21
    assert of(SCORES, 2) == {"a": 0.0, "b": 0.5}
    assert of(SCORES, 4) == {"a": 0.25, "b": 0.75}
    same = jp.allocation.common_slope(CURVES, power={"a": 2.0, "b": 2.0}, least_kept=0.0)
    assert same(SCORES, 0.5) == jp.allocation.common_slope(CURVES, least_kept=0.0)(SCORES, 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_of_convex_curves_no_other_choice_is_better(seed):
    rng = np.random.default_rng(seed)
    curves = {name: np.append(0, np.cumsum(np.sort(rng.uniform(size=6)))) for name in "abc"}
    scores = {name: np.ones(6) for name in "abc"}
    cost = lambda places: sum(c[p] for p, c in zip(places, curves.values(), strict=True))
    of = jp.allocation.common_slope(curves, least_kept=0.0)
    for count in range(18):
        places = [round(6 * s, 6) for s in of(scores, count).values()]
        assert sum(places) == count and all(place.is_integer() for place in places)
        options = (p for p in itertools.product(range(7), repeat=3) if sum(p) == count)
        assert cost(map(int, places)) == pytest.approx(min(map(cost, options)))


def test_a_curve_that_is_not_convex_is_cut_by_its_hull():
    # a is dear at first, so its hull costs 1 a weight from 0 to 1; b costs 0.5, 1.5, ...
    curves = {"a": [0, 3, 3.5, 3.5, 4], "b": [0, 0.5, 2, 5, 9]}
    of = jp.allocation.common_slope(curves, least_kept=0.0)
    assert of(SCORES, 1) == {"a": 0.0, "b": 0.25}
    assert of(SCORES, 4) == {"a": 0.75, "b": 0.25}


def test_a_schedule_gives_the_same():
    of = jp.allocation.common_slope(CURVES)
    traced = jax.jit(lambda s: of(SCORES, s))
    for sparsity in (0.0, 0.3, 0.62, 0.95):
        np.testing.assert_allclose(
            jax.tree.leaves(traced(sparsity)), jax.tree.leaves(of(SCORES, sparsity)), atol=1e-6
        )
    assert of(SCORES, 0.95) == {"a": 0.95, "b": 0.95}  # a twentieth stays


@pytest.mark.full
def test_curves_of_blocks():
    params = {
        "a": {"kernel": jax.random.normal(jax.random.key(0), (4, 6))},
        "b": {"kernel": jax.random.normal(jax.random.key(1), (6, 2)), "bias": jnp.ones(2)},
    }
    fn = lambda p, x: jnp.tanh(x @ p["a"]["kernel"]) @ p["b"]["kernel"] + p["b"]["bias"][None]
    xs = [jax.random.normal(jax.random.key(i), (5, 4)) for i in range(2)]
    grads = jp.calibration.output_gradient(fn, params, xs)
    wanted = jax.grad(lambda p: sum(jnp.mean(fn(p, x) ** 2) for x in xs) / 2)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, wanted)
    pattern = jp.block(2, 2, by=jnp.mean)
    curves = jp.calibration.quadratic_curves(params, grads, pattern, points=6)
    assert {name: len(curve) for name, curve in curves.items()} == {"a/kernel": 7, "b/kernel": 7}
    w, g = params["a"]["kernel"], grads["a"]["kernel"]
    worth = np.abs(w * g).reshape(2, 2, 3, 2).mean((1, 3))
    order = np.argsort(worth.ravel())
    for i in range(7):  # 6 blocks, one more of them at each point
        gone = np.isin(np.arange(6), order[:i]).reshape(2, 3).repeat(2, 0).repeat(2, 1)
        assert curves["a/kernel"][i] == pytest.approx(
            float(distortion(jnp.where(gone, -w, 0), g)), rel=1e-4, abs=1e-12
        )
    scores = jp.saliency(jp.kernels(params), grads=grads)
    masks = jp.select(scores, jp.allocation.common_slope(curves), 0.5, pattern)
    assert float(jp.sparsity(masks)) == pytest.approx(0.5, abs=4 / 36)


def test_what_cannot_be_is_told():
    of = jp.allocation.common_slope
    with pytest.raises(ValueError, match="no curve of 'b'"):
        of({"a": CURVES["a"]})(SCORES, 0.5)
    with pytest.raises(ValueError, match=r"the sparsity is at most 0\.95; got 0\.97"):
        of(CURVES)(SCORES, 0.97)
    with pytest.raises(ValueError, match="no power of 'b'"):
        of(CURVES, power={"a": 1.0})
    with pytest.raises(ValueError, match="power is positive"):
        of(CURVES, power={"a": 1.0, "b": 0.0})
    with pytest.raises(ValueError, match="at least three finite"):
        of({"a": [0, float("nan"), 1]})
    with pytest.raises(ValueError, match="the curve of 'a' is not finite"):
        of({"a": [0, 1, float("inf")]})
    with pytest.raises(ValueError, match="points is how many steps, at least 2; got 1"):
        jp.calibration.quadratic_curves({}, {}, points=1)
    with pytest.raises(ValueError, match="batches is empty"):
        jp.calibration.output_gradient(lambda p, x: x, {}, [])
