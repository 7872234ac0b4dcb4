"""Penalties on gates and scales: worked numbers, gradients, and the laws of each."""

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


def test_bad_input():
    with pytest.raises(ValueError, match="low < high"):
        jp.gates.box(1.0, 1.0)
    with pytest.raises(ValueError, match="needs the params"):
        jp.gates.box(0.0, 1.0).update(jnp.ones(2), optax.EmptyState())
    with pytest.raises(ValueError, match="t must be above 0"):
        jp.gates.polarization(jnp.ones(2), t=0.0)
    with pytest.raises(ValueError, match="these masks must be like the params"):
        jp.gates.slimming(SCALES, {"scale": jnp.ones(3, bool)})
