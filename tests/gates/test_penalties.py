"""Penalties on gates and scales: worked numbers, gradients and laws; continuous relaxation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

SCALES = {"norm": {"scale": jnp.array([0.5, -2.0, 0.0]), "bias": None}}


def test_slimming_and_its_gradient():
    assert float(jp.gates.slimming(SCALES)) == 2.5
    slope = jax.grad(lambda s: 1e-4 * jp.gates.slimming(s))(SCALES)["norm"]["scale"]
    np.testing.assert_allclose(slope, [1e-4, -1e-4, 0])


def test_slimming_under_masks_penalizes_pruned_scales_only():
    masks = {"norm": {"scale": jnp.array([True, False, False]), "bias": None}}
    assert float(jp.gates.slimming(SCALES, masks)) == 2.0
    slope = jax.grad(lambda s: jp.gates.slimming(s, masks))(SCALES)["norm"]["scale"]
    np.testing.assert_array_equal(slope, [0, -1, 0])


def test_slimming_under_masks_leaves_kept_scales_to_the_bit():
    params = {"scale": jax.random.normal(jax.random.key(0), (64,))}
    masks = {"scale": jax.random.bernoulli(jax.random.key(1), 0.5, (64,))}
    loss = lambda p: jnp.sum(jnp.sin(3 * p["scale"]))
    penalized = lambda p: loss(p) + 5e-4 * jp.gates.slimming(p, masks)
    stepped = [
        jax.tree.map(lambda w, g: w - 0.1 * g, params, jax.grad(f)(params))
        for f in (loss, penalized)
    ]
    same = stepped[0]["scale"] == stepped[1]["scale"]
    assert same[masks["scale"]].all() and not same[~masks["scale"]].any()


@pytest.mark.parametrize(
    ("gates", "value"),
    [([0.5] * 4, 2.4), ([0, 0, 1, 1], 0.4), ([0, 0, 0, 1], -0.3), ([0, 1, 1, 1], 2.1)],
)
def test_polarization_by_the_numbers(gates, value):
    assert float(jp.gates.polarization(jnp.array(gates, jnp.float32), t=1.2)) == pytest.approx(
        value
    )


@pytest.mark.parametrize(("alpha", "value"), [(0.5, -0.05), (1.0, -0.3), (2.0, -0.8)])
def test_alpha_moves_what_gates_are_driven_from(alpha, value):
    """1.2 of one open gate in four, less 3 |alpha / 4| + |1 - alpha / 4|."""
    gates = jnp.array([0.0, 0, 0, 1])
    assert float(jp.gates.polarization(gates, t=1.2, alpha=alpha)) == pytest.approx(value)


def test_the_mean_of_polarization_is_over_all_leaves():
    halves = {"a": jnp.array([0.0, 0.0]), "b": jnp.array([1.0, 1.0]), "c": None}
    assert float(jp.gates.polarization(halves, t=1.2)) == pytest.approx(0.4)


def test_polarization_polarizes():
    gates = jnp.linspace(0.3, 0.7, 20)
    tx = optax.chain(optax.sgd(0.02), jp.gates.box(0.0, 1.0))

    def step(gates, _):
        updates, _ = tx.update(jax.grad(jp.gates.polarization)(gates, 1.0), tx.init(gates), gates)
        return optax.apply_updates(gates, updates), None

    gates, _ = jax.lax.scan(step, gates, length=100)
    closed = gates == 0  # those below the mean; the others stay, and nothing is between
    assert 5 <= closed.sum() <= 15
    assert (gates[~closed] > 0.45).all()


def test_disagreement_and_consensus():
    batch = {"a": jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), "b": None}
    np.testing.assert_allclose(jp.gates.consensus(batch)["a"], [1, 0.5, 0])
    assert float(jp.gates.disagreement(batch)) == pytest.approx(0.25 / 3)
    # of all gates, whatever leaf they are in: (1/4 + 1/4) / 4
    unequal = {**batch, "c": jnp.array([[1.0], [0.0]])}
    assert float(jp.gates.disagreement(unequal)) == pytest.approx(0.5 / 4)
    agreed = {"a": jnp.array([[1.0, 0.0], [1.0, 0.0]])}
    assert float(jp.gates.disagreement(agreed)) == 0


def test_a_box_clips_what_params_become():
    params = {"s": jnp.array([4.5, -4.5, 0.0])}
    tx = optax.chain(optax.sgd(1.0), jp.gates.box(-4.6, 4.6))
    updates, _ = tx.update({"s": jnp.array([-1.0, 1.0, 0.5])}, tx.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates)["s"], [4.6, -4.6, -0.5])


# --- continuous relaxation ------------------------------------------------------------------------

S = {"a": jnp.array([1.0, 0.2]), "b": jnp.array([-0.4, -0.9])}
FLAT = jnp.array([1.0, 0.2, -0.4, -0.9])
GATE = jp.gates.continuous_sparsification(5.0, math.inf)


def test_gates_and_their_cuts():
    gates = GATE.deterministic({"g": FLAT})
    np.testing.assert_allclose(gates["g"], [0.9933, 0.7311, 0.1192, 0.0110], atol=5e-5)
    for threshold, kept in ((0.02, 3), (0.1, 3), (0.25, 2), (0.5, 2)):
        assert int(jp.gates.threshold(gates, above=threshold)["g"].sum()) == kept


def test_the_strongest_passes_whole():
    gates = jp.gates.keep_strongest(GATE.deterministic({"g": FLAT}))
    np.testing.assert_allclose(gates["g"], [1, 0.7360, 0.1200, 0.0111], atol=5e-5)


@pytest.mark.parametrize(("rho", "wanted"), [(0.33, 0.2158), (1.0, 0.89118)])
def test_the_ejector(rho, wanted):
    assert float(jp.gates.ejector(S, rho)) == pytest.approx(wanted, abs=5e-5)
    bumps = np.exp(-((np.asarray(FLAT) / (2 * rho**2)) ** 2))
    assert float(jp.gates.ejector(S, rho)) == pytest.approx(np.linalg.norm(bumps) / 2, rel=1e-5)


def test_the_ramp():
    ramp = jp.gates.cubic_ramp(24, 25)
    np.testing.assert_array_equal([ramp(n) for n in (0, 24, 24.5, 25, 50)], [0, 0, 0.125, 1, 1])


def test_at_the_start_the_cost_has_little_to_pull_by():
    """It is beta f (1 - f): 0.033 at s = 1, 1.25 at s = 0. So it is the strength that is raised."""
    slope = jax.vmap(jax.grad(lambda s: GATE.deterministic(s)))(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(slope, [0.0332, 1.25], atol=5e-5)


def test_the_ejector_drives_away_from_the_middle():
    slope = jax.grad(jp.gates.ejector)({"a": jnp.array([0.3, -0.3, 0.0]), "b": None})
    assert slope["a"][0] < 0 < slope["a"][1] and slope["a"][2] == 0  # descent widens the gap


def test_the_ejector_has_a_slope_wherever_gates_are():
    for s in (0.0, 30.0, -1e4):
        slope = jax.grad(lambda s: jp.gates.ejector({"a": s}, 0.33))(jnp.full(3, s))
        np.testing.assert_array_equal(slope, 0)


def test_what_was_cut_does_not_count():
    kept = {"a": jnp.array([True, False]), "b": jnp.array([True, False])}
    small = {"a": S["a"][:1], "b": S["b"][:1]}
    assert float(jp.gates.ejector(S, 1.0, kept)) == pytest.approx(
        float(jp.gates.ejector(small)), rel=1e-6
    )
    slope = jax.grad(lambda s: jp.gates.ejector(s, 1.0, kept))(S)
    assert slope["a"][1] == slope["b"][1] == 0 != slope["b"][0]


def test_the_gradient_flows_through_the_largest():
    """What is f / max f does not change if all gates grow in proportion."""
    f = jnp.array([0.8, 0.4, 0.1])
    weighed = lambda f: (jnp.array([1.0, 2.0, 3.0]) * jp.gates.keep_strongest({"g": f})["g"]).sum()
    slope = jax.grad(weighed)(f)
    assert float(slope @ f) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(slope[1:], np.array([2.0, 3.0]) / 0.8, rtol=1e-6)
    assert slope[0] < 0


def test_only_some_are_kept_from_collapse():
    gates = {"a": jnp.array([0.5, 0.1]), "b": jnp.array([0.5]), "c": None}
    some = jp.gates.keep_strongest(gates, only=["b"])
    np.testing.assert_array_equal(some["a"], gates["a"])
    assert some["b"][0] == 1 and some["c"] is None
    closed = jp.gates.keep_strongest({"a": jnp.zeros(2)})["a"]
    np.testing.assert_array_equal(closed, 0)


def test_under_jit_and_vmap():
    stack = jax.tree.map(lambda s: jnp.stack([s, 2 * s]), S)
    loss = lambda s: jp.gates.ejector(s) + jp.gates.keep_strongest(GATE.deterministic(s))["b"].sum()
    both = jax.jit(jax.vmap(loss))(stack)
    np.testing.assert_allclose(both[1], loss(jax.tree.map(lambda s: 2 * s, S)), rtol=1e-6)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input_of_penalties():
    with pytest.raises(ValueError, match="low < high"):
        jp.gates.box(1.0, 1.0)
    with pytest.raises(ValueError, match="needs the params"):
        jp.gates.box(0.0, 1.0).update(jnp.ones(2), optax.EmptyState())
    with pytest.raises(ValueError, match="t must be above 0"):
        jp.gates.polarization(jnp.ones(2), t=0.0)
    with pytest.raises(ValueError, match="these masks must be like the params"):
        jp.gates.slimming(SCALES, {"scale": jnp.ones(3, bool)})


def test_bad_input_of_relaxation():
    with pytest.raises(ValueError, match=r"ejector: rho must be above 0; got 0"):
        jp.gates.ejector(S, 0)
    with pytest.raises(ValueError, match=r"begin < end; got 5 and 5"):
        jp.gates.cubic_ramp(5, 5)
    with pytest.raises(ValueError, match=r"no gates of \['x'\]; there are 'a', 'b'"):
        jp.gates.keep_strongest(S, only=["x"])
