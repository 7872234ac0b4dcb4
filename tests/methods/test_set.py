"""SET: the worked two-sided drop, and growth that is random in the key and the step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.methods.dynamic import smallest
from jaxprune.methods.set import closest_to_zero

W = jnp.array([0.9, 0.8, 0.7, 0.6, 0.5, -0.05, -0.1, -0.15, -0.2, -0.3])
ALL = {"w": jnp.ones(10, bool)}


@pytest.mark.full
def test_the_worked_two_sided_drop():
    # 0.4 of the five positive and of the five negative weights; by magnitude all four are negative
    gone = np.flatnonzero(~closest_to_zero(ALL, {"w": W}, 0.4)["w"])
    np.testing.assert_array_equal(W[gone], jnp.array([0.6, 0.5, -0.05, -0.1]))
    gone = np.flatnonzero(~smallest(ALL, {"w": W}, 0.4)["w"])
    np.testing.assert_array_equal(W[gone], jnp.array([-0.05, -0.1, -0.15, -0.2]))


def test_the_two_sides_ignore_what_is_pruned_and_count_zeros_as_positive():
    masks = {"w": jnp.array([0, 1, 1, 1, 1, 1, 1, 0], bool)}
    w = {"w": jnp.array([0.01, 0.5, 0.0, 0.3, -0.4, -0.1, -0.2, -0.01])}
    left = closest_to_zero(masks, w, 0.5)["w"]  # one of {.5, 0, .3}, one of {-.4, -.1, -.2}
    np.testing.assert_array_equal(np.flatnonzero(left), [1, 3, 4, 6])


@pytest.mark.parametrize(("n", "m", "density"), [(784, 1000, 0.0455), (4000, 1000, 0.0250)])
def test_the_density_of_the_paper_is_er(n, m, density):
    """That is, epsilon (n + m) / (n m) with epsilon = 20."""
    assert 20 * (n + m) / (n * m) == pytest.approx(density, abs=5e-5)
    scores = {"a": jnp.zeros((n, m)), "b": jnp.zeros((m, m))}
    total = sum(x.size for x in scores.values())
    budget = 20 * sum(sum(x.shape) for x in scores.values())
    sparsities = jp.er(scores, 1 - budget / total)
    assert 1 - sparsities["a"] == pytest.approx(density, abs=5e-5)


@pytest.mark.full
@pytest.mark.parametrize("two_sided", [False, True])
def test_growth_depends_on_key_and_step_and_not_on_gradients(two_sided):
    params = {"kernel": jax.random.normal(jax.random.key(9), (20, 30))}
    masks = jp.select(jp.magnitude(params), jp.uniform, 0.8)
    params = jp.apply_masks(params, masks)

    def grown(seed, step, grads=None):
        rule = jp.set(jax.random.key(seed), 0.8, 0.5, jp.uniform, two_sided=two_sided)
        new = rule.update(jp.MaskState(masks), params, step=step, grads=grads).masks
        return new["kernel"] & ~masks["kernel"]

    base = grown(0, 0)
    assert 50 <= int(base.sum()) <= 60  # 60 of 120, but for those that return
    assert (base == grown(0, 0, params)).all()
    assert (base != grown(1, 0)).any()
    assert (base != grown(0, 1)).any()


def test_growth_is_uniform_over_the_free_positions():
    masks = {"w": jnp.arange(100) < 50}
    params = {"w": jnp.where(masks["w"], 1.0 + jnp.arange(100), 0.0)}

    @jax.jit
    def grown(step):
        rule = jp.set(jax.random.key(2), 0.5, 0.2, prunable=lambda p: p)
        return rule.update(jp.MaskState(masks), params, step=step).masks["w"]

    times = sum(np.asarray(grown(step), int) for step in range(400))
    # ten are dropped, and ten of sixty grow: each a sixth of the time
    free = np.r_[times[:10], times[50:]]
    expected, deviation = 400 / 6, math.sqrt(400 * (1 / 6) * (5 / 6))
    np.testing.assert_array_equal(times[10:50], 400)
    assert abs(free - expected).max() < 5 * deviation
    assert abs(free.mean() - expected) < 1e-9


@pytest.mark.full
def test_the_first_growth_is_no_continuation_of_the_first_draw():
    """The keys of both differ, or growth would take the next best of the first scores."""
    key = jax.random.key(5)
    params = {"kernel": jnp.ones((30, 40))}
    rule = jp.set(key, 0.5, 0.5, jp.uniform)
    state = rule.init(params)
    new = rule.update(state, params, step=0)
    more = jp.static(key, 0.25, jp.uniform).init(params).masks["kernel"]
    born = new.masks["kernel"] & ~state.masks["kernel"]
    assert (born & ~more).any()
