"""A curve bends around a barrier, keeps its ends, and stays under its masks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.analysis import bezier, fit_curve
from tests.quick import quick

A = {"w": jnp.array([1.0, 0.0]), "b": None}
B = {"w": jnp.array([0.0, 1.0]), "b": None}


def ring(params, key=None):
    """A valley of zero loss, the unit circle: between A and B the straight line climbs to 0.25."""
    return (jnp.sum(params["w"] ** 2) - 1) ** 2


def test_bezier_is_exact_at_its_ends_and_between_equals():
    middle = {"w": jnp.array([3.3, -7.7]), "b": None}
    for t, end in ((0.0, A), (1.0, B)):
        np.testing.assert_array_equal(jax.jit(bezier)(middle, A, B, t)["w"], end["w"])
    np.testing.assert_array_equal(bezier(A, A, A, 0.3)["w"], A["w"])


def test_bezier_is_its_equation():
    middle = {"w": jnp.array([1.0, 1.0]), "b": None}
    for t in (0.25, 0.5, 0.9):
        expected = (1 - t) ** 2 * A["w"] + 2 * t * (1 - t) * middle["w"] + t**2 * B["w"]
        np.testing.assert_allclose(bezier(middle, A, B, t)["w"], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("a", "middle", "b", "t", "expected"),
    [
        (jnp.inf, 1.0, 2.0, 0.5, jnp.inf),
        (jnp.inf, 1.0, 2.0, 1.0, 2.0),
        (1.0, -jnp.inf, 2.0, 0.0, 1.0),
        (1.0, -jnp.inf, 2.0, 0.75, -jnp.inf),
        (-jnp.inf, -jnp.inf, -jnp.inf, 0.25, -jnp.inf),
        (-3e38, 3e38, -3e38, 0.5, 0.0),
        (jnp.inf, 0.0, -jnp.inf, 0.5, jnp.nan),  # inf - inf
    ],
)
def test_bezier_of_infinities_is_its_equation(a, middle, b, t, expected):
    point = bezier(*map(jnp.float32, (middle, a, b)), t)
    np.testing.assert_array_equal(point, jnp.float32(expected))


def test_a_curve_bends_around_a_barrier():
    middle, losses = fit_curve(jax.random.key(0), ring, A, B, optax.adam(0.05), 300)
    straight = float(jp.barrier(ring, A, B))
    curved = float(jp.barrier(ring, A, B, path=partial(bezier, middle)))
    assert straight == 0.25 and curved < 0.01
    assert losses.shape == (300,) and losses[-50:].mean() < 0.1 * losses[:20].mean()


def test_inside_jit_and_vmap_it_is_the_same_curve():
    fit = lambda key, b: fit_curve(key, ring, A, b, optax.sgd(0.1, 0.9), 20)
    middle, losses = fit(jax.random.key(0), B)
    in_jit, losses_in_jit = jax.jit(fit)(jax.random.key(0), B)
    np.testing.assert_allclose(in_jit["w"], middle["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses_in_jit, losses, rtol=1e-3, atol=1e-6)
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    lanes, _ = jax.vmap(fit, in_axes=(0, None))(keys, B)
    np.testing.assert_allclose(lanes["w"][0], middle["w"], rtol=1e-4, atol=1e-6)
    assert not np.allclose(lanes["w"][0], lanes["w"][1])


def test_the_ends_and_the_key_stay_usable():
    # what is donated is the middle, not what it was made from
    a = {"w": jnp.array([1.0, 0.0]), "b": None}
    fit_curve(jax.random.key(0), ring, a, a, optax.sgd(0.1), 2)
    assert a["w"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "optimizer", quick([optax.adam(0.1), optax.sgd(0.1, 0.9), optax.adamw(0.1)])
)
def test_the_whole_curve_is_under_the_masks(optimizer):
    kernel = jax.random.normal(jax.random.key(0), (2, 4, 5))
    masks = {"w": jax.random.bernoulli(jax.random.key(1), 0.5, (4, 5)), "b": None}
    a, b = (jp.apply_masks({"w": w, "b": jnp.ones(5)}, masks) for w in kernel)
    loss = lambda params, key: jnp.sum((params["w"] - 1) ** 2) + jnp.sum(params["b"] ** 2)
    middle, _ = fit_curve(jax.random.key(2), loss, a, b, optimizer, 5, masks)
    np.testing.assert_array_equal(middle["w"] != 0, masks["w"])
    np.testing.assert_array_equal(bezier(middle, a, b, 0.3)["w"] != 0, masks["w"])
    assert not np.allclose(middle["b"], 1)
    dense, _ = fit_curve(jax.random.key(2), loss, a, b, optimizer, 5)
    assert (dense["w"] != 0).all()


def test_each_step_has_a_key_of_its_own():
    noise = lambda params, key: jax.random.normal(key) + 0 * params["w"].sum()
    _, losses = fit_curve(jax.random.key(0), noise, A, B, optax.sgd(0.1), 8)
    _, again = fit_curve(jax.random.key(0), noise, A, B, optax.sgd(0.1), 8)
    assert len(set(losses.tolist())) == 8
    np.testing.assert_array_equal(losses, again)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None])
def test_no_steps(steps):
    with pytest.raises(ValueError, match="fit_curve: steps is a number of steps, at least 1; got"):
        fit_curve(jax.random.key(0), ring, A, B, optax.sgd(0.1), steps)


def test_what_does_not_fit():
    fit = partial(fit_curve, jax.random.key(0), ring)
    with pytest.raises(ValueError, match=r"'w' has shape \(3,\), wanted \(2,\)"):
        fit(A, {"w": jnp.ones(3), "b": None}, optax.sgd(0.1), 2)
    with pytest.raises(ValueError, match=r"must be like the params: 'w' has shape \(3,\)"):
        fit(A, B, optax.sgd(0.1), 2, {"w": jnp.ones(3, bool), "b": None})
    with pytest.raises(TypeError, match="masks are bool arrays"):
        fit(A, B, optax.sgd(0.1), 2, {"w": jnp.ones(2), "b": None})
    with pytest.raises(TypeError, match=r"scalar-output|must be real|scalar"):
        fit_curve(jax.random.key(0), lambda p, key: p["w"], A, B, optax.sgd(0.1), 2)
