"""Budgets: what gates are expected to keep, by hand; the Lagrangian lands; bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.programs.flops import Flops

PARAMS = {
    "Dense_0": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)},
    "Dense_1": {"kernel": jnp.ones((8, 2)), "bias": jnp.ones(2)},
}


def apply(params, x):
    x = jax.nn.relu(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
    return x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]


FLOPS = jp.count_flops(apply, PARAMS, jnp.ones((1, 4)))


def leaves(first, second):
    return {"Dense_0": {"kernel": first, "bias": None}, "Dense_1": {"kernel": second, "bias": None}}


# --- what is kept --------------------------------------------------------------------------------


def test_weights_by_hand():
    p_open = leaves(jnp.full((4, 8), 0.5), None)
    assert float(jp.gates.kept_weights(p_open, jp.kernels(PARAMS))) == pytest.approx((16 + 16) / 48)
    assert float(jp.gates.kept_weights(p_open, PARAMS)) == pytest.approx((16 + 26) / 58)


def test_gates_of_inputs_broadcast():
    p_open = leaves(jnp.array([[1.0], [0.0], [0.5], [0.5]]), jnp.full((8, 1), 0.25))
    assert float(jp.gates.kept_weights(p_open, jp.kernels(PARAMS))) == pytest.approx((16 + 4) / 48)


def test_products_without_weights_are_always_kept():
    flops = Flops({"w": 30}, 10, ())
    kept = jp.gates.kept_flops({"w": jnp.zeros((1, 1))}, flops, {"w": jnp.ones((5, 3))})
    assert float(kept) == pytest.approx(0.25)


def test_masks_are_counted_and_probabilities_expected():
    mask = jax.random.bernoulli(jax.random.key(0), 0.3, (4, 8))
    for gates in (mask, mask.astype(jnp.float32)):
        kept = jp.gates.kept_weights(leaves(gates, None), jp.kernels(PARAMS))
        assert float(kept) == pytest.approx((int(mask.sum()) + 16) / 48)


def test_the_expected_fraction_is_the_mean_of_the_actual():
    gate = jp.gates.hard_concrete()
    logits = jp.gates.logits(jp.kernels(PARAMS), axes=-2, logit=-1.0)
    draw = lambda key: jp.gates.kept_weights(
        jax.tree.map(lambda z: z > 0, gate.sample(key, logits)), jp.kernels(PARAMS)
    )
    drawn = jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000))
    expected = jp.gates.kept_weights(gate.p_open(logits), jp.kernels(PARAMS))
    assert float(drawn.mean()) == pytest.approx(float(expected), abs=0.01)


def test_under_vmap_one_number_a_seed():
    p_open = jax.random.uniform(jax.random.key(0), (3, 1, 8))
    f = lambda p: jp.gates.kept_flops(leaves(p, None), FLOPS, PARAMS)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(p_open), [f(p) for p in p_open], rtol=1e-6)


# --- the Lagrangian ------------------------------------------------------------------------------


def test_the_lagrangian_by_hand():
    own = jp.gates.Multipliers(jnp.float32(2.0), jnp.float32(3.0))
    assert float(jp.gates.lagrangian(own, 0.5, 0.2)) == pytest.approx(2 * 1.5 + 3 * 2.25)
    slope, to_kept = jax.grad(jp.gates.lagrangian, (0, 1))(own, 0.5, 0.2)
    np.testing.assert_allclose(slope, [-1.5, -2.25], rtol=1e-5)  # climbs, under an optimizer
    assert float(to_kept) == pytest.approx((2 + 2 * 3 * 1.5) / 0.2)


@pytest.mark.parametrize(("target", "scale"), [(0.5, 1), (0.2, 10), (0.05, 1)])
def test_it_lands_on_its_target_whatever_the_loss(target, scale):
    worth = jnp.linspace(0.1, 1.0, 100)[:, None]  # what it costs to close a gate
    params = {"kernel": jnp.ones((100, 1))}
    learned = {
        "gates": jp.gates.logits(params, axes=-2, logit=2.0),
        "multipliers": jp.gates.multipliers(),
    }
    gate = jp.gates.hard_concrete()
    falling = optax.polynomial_schedule(1.0, target, power=3, transition_steps=400)
    tx = optax.adam(0.05, b2=0.9)  # one for all: the multipliers climb by themselves

    def loss(learned, now, key):
        gates = gate.sample(key, learned["gates"])["kernel"]
        kept = jp.gates.kept_weights(gate.p_open(learned["gates"]), params)
        lost = scale * jnp.mean(worth * (1 - gates) ** 2)
        return lost + jp.gates.lagrangian(learned["multipliers"], kept, falling(now)), kept

    def step(carry, now):
        learned, state = carry
        key = jax.random.fold_in(jax.random.key(0), now)
        (_, kept), grads = jax.value_and_grad(loss, has_aux=True)(learned, now, key)
        updates, state = tx.update(grads, state, learned)
        return (optax.apply_updates(learned, updates), state), kept

    train = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(800)))
    (learned, _), kept = train((learned, tx.init(learned)))
    np.testing.assert_allclose(kept[-1], target, atol=0.01)
    open_ = jp.gates.threshold(gate.deterministic(learned["gates"]))["kernel"][:, 0]
    assert float(open_.mean()) == pytest.approx(target, abs=0.02)
    assert float(worth[open_].mean()) > float(worth[~open_].mean()) + 0.3  # the dear ones


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, 20, float("nan")])
def test_targets_are_fractions(target):
    with pytest.raises(ValueError, match=r"lagrangian: the target is .* in \(0, 1\); got"):
        jp.gates.lagrangian(jp.gates.multipliers(), 0.5, target)


def test_a_percentage_is_recognized():
    with pytest.raises(ValueError, match=r"For 20% write 0.2"):
        jp.gates.lagrangian(jp.gates.multipliers(), 0.5, 20)


def test_a_schedule_may_start_at_1():
    target = optax.linear_schedule(1.0, 0.2, 10)(0)
    assert (
        float(jp.gates.lagrangian(jp.gates.multipliers(), jnp.float32(1.0), jnp.asarray(target)))
        == 0
    )


def test_flops_need_costs():
    with pytest.raises(ValueError, match=r"needs costs: flops=jp\.count_flops"):
        jp.gates.kept_flops(leaves(jnp.ones((4, 1)), None), None, PARAMS)
    with pytest.raises(ValueError, match="gated by 'Dense_0/kernel' costs anything"):
        jp.gates.kept_flops(leaves(jnp.ones((4, 1)), None), {"Dense_1/kernel": 3}, PARAMS)


def test_gates_that_do_not_fit_name_the_leaf_and_both_shapes():
    with pytest.raises(
        ValueError,
        match=r"'Dense_0/kernel' has shape \(3, 1\), wanted one that broadcasts to \(4, 8\)",
    ):
        jp.gates.kept_weights(leaves(jnp.ones((3, 1)), None), PARAMS)
    with pytest.raises(ValueError, match=r"not in the params: 'Dense_0'.*structured.relaxed_cost"):
        jp.gates.kept_weights({"Dense_0": jnp.ones(8)}, PARAMS)
