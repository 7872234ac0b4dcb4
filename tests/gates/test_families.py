"""Families of gates: the worked numbers of each, and bad input; their laws: `test_contract`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

LOGITS = {"kernel": jnp.array([[2.0, 0.0, -2.0]]), "bias": None}
KEY = jax.random.key(0)
N = 40_000  # draws; the standard error of a mean of gates is at most 0.0025


def drawn(gate, logits, n=N, key=KEY):
    """So many draws of each gate: (n, ...)."""
    return gate.sample(key, jnp.broadcast_to(logits, (n, *logits.shape)))


# --- hard concrete -------------------------------------------------------------------------------

HARD = jp.gates.hard_concrete()


def survival(t, s, beta=2 / 3, low=-0.1, high=1.1):
    """P(gate > t) of a hard concrete gate, for t in [0, 1): in float64, by its definition."""
    v = (t - low) / (high - low)
    return 1 / (1 + np.exp(-(s - beta * (np.log(v) - np.log1p(-v)))))


def mean_gate(s):
    """E[gate] = integral of P(gate > t) over t from 0 to 1."""
    t = (np.arange(20_000) + 0.5) / 20_000
    return survival(t, s).mean()


def test_hard_concrete_by_the_numbers_of_the_paper():
    logits = LOGITS["kernel"][0]
    np.testing.assert_allclose(HARD.p_open(logits), [0.9734, 0.8318, 0.4010], atol=5e-5)
    np.testing.assert_allclose(HARD.deterministic(logits), [0.9570, 0.5, 0.0430], atol=5e-5)
    v = jax.nn.sigmoid((jnp.log(0.2) - jnp.log(0.8) + logits) / (2 / 3))
    by_hand = jnp.clip(1.2 * v - 0.1, 0, 1)
    np.testing.assert_allclose(by_hand, [0.7582, 0.0333, 0.0], atol=5e-5)


def test_hard_concrete_draws_by_its_formula():
    key = jax.random.split(KEY, 1)[0]  # one leaf, one key
    u = jax.random.uniform(key, (1, 3), jnp.float32, 1e-6, 1 - 1e-6)
    v = jax.nn.sigmoid((jnp.log(u / (1 - u)) + LOGITS["kernel"]) * 1.5)
    expected = np.clip(1.2 * v - 0.1, 0, 1)
    np.testing.assert_allclose(HARD.sample(KEY, LOGITS)["kernel"], expected, atol=1e-5)


@pytest.mark.parametrize("s", [-3.0, -1.0, 0.0, 2.0])
def test_hard_concrete_moments(s):
    gates = np.asarray(drawn(HARD, jnp.array(s)), np.float64)
    p_open = float(HARD.p_open(jnp.array(s)))
    assert survival(0.0, s) == pytest.approx(p_open, abs=1e-6)
    assert (gates > 0).mean() == pytest.approx(p_open, abs=0.008)
    assert (gates == 1).mean() == pytest.approx(survival(1.0, s), abs=0.008)
    assert gates.mean() == pytest.approx(mean_gate(s), abs=0.008)


@pytest.mark.parametrize("s", [-1.0, 0.5])
def test_hard_concrete_gradients_are_those_of_the_expectation(s):
    mean_gradient = jax.grad(lambda s: drawn(HARD, s).mean())(jnp.array(s))
    difference = (mean_gate(s + 1e-3) - mean_gate(s - 1e-3)) / 2e-3
    assert float(mean_gradient) == pytest.approx(difference, abs=0.006)
    slope = jax.grad(HARD.p_open)(jnp.array(s))
    difference = (survival(0.0, s + 1e-4) - survival(0.0, s - 1e-4)) / 2e-4
    assert float(slope) == pytest.approx(difference, rel=1e-3)


# --- the others ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_binary_concrete_is_open_with_probability_sigmoid(temperature):
    gate = jp.gates.binary_concrete(temperature)
    soft = drawn(gate, jnp.array([1.0, -0.5]))
    np.testing.assert_allclose(
        (soft > 0.5).mean(0), jax.nn.sigmoid(jnp.array([1, -0.5])), atol=0.01
    )


def test_straight_through_forward_is_hard_and_backward_is_soft():
    logits = jnp.linspace(-3, 3, 50)
    soft, hard = (jp.gates.binary_concrete(0.7, hard=h) for h in (False, True))
    values, gradients = zip(
        *(
            (gate.sample(KEY, logits), jax.grad(lambda s, g=gate: g.sample(KEY, s).sum())(logits))
            for gate in (soft, hard)
        ),
        strict=True,
    )
    np.testing.assert_array_equal(values[1], values[0] > 0.5)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-6)


def test_bernoulli_mean_and_gradient():
    s = jnp.array([1.0, -2.0, 0.0])
    weights = jnp.array([3.0, -1.0, 2.0])
    gate = jp.gates.bernoulli()
    np.testing.assert_allclose(drawn(gate, s).mean(0), jax.nn.sigmoid(s), atol=0.01)
    slope = jax.grad(lambda s: jnp.vdot(weights, gate.sample(KEY, s)))(s)
    p = jax.nn.sigmoid(s)
    np.testing.assert_allclose(slope, weights * p * (1 - p), rtol=1e-5)


def test_deterministic_straight_through_passes_the_gradient_unchanged():
    s, weights = jnp.array([0.3, -0.2, 0.0]), jnp.array([3.0, -1.0, 2.0])
    gate = jp.gates.straight_through()
    np.testing.assert_array_equal(gate.sample(None, s), [1, 0, 0])
    np.testing.assert_array_equal(jax.grad(lambda s: gate.sample(None, s) @ weights)(s), weights)


def test_gumbel_softmax_chooses_by_softmax_at_any_temperature():
    logits = jnp.array([0.02, 0, 0, 0, 0, 0]) * 100  # 2 of 4 layers: six options, scale 100
    gate = jp.gates.gumbel_softmax(0.3, hard=True)
    p = gate.p_open(logits)
    np.testing.assert_allclose(p, [0.5964, *[0.0807] * 5], atol=5e-5)
    np.testing.assert_allclose(drawn(gate, logits).mean(0), p, atol=0.01)
    np.testing.assert_array_equal(gate.deterministic(logits), [1, 0, 0, 0, 0, 0])
    options = jnp.array(
        [[1, 0, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]]
    )
    kept = p @ options.astype(jnp.float32)
    np.testing.assert_allclose(kept, [0.758, 0.242, 0.242, 0.758], atol=5e-4)


def test_hard_concrete_gates_start_open_and_stay_in_their_box_as_the_authors_have_it():
    params = {"kernel": jnp.ones((2, 3)), "bias": None}
    logits = jp.gates.logits(params, logit=math.log(0.8 / 0.2))
    np.testing.assert_allclose(jp.gates.hard_concrete().p_open(logits)["kernel"], 0.952, atol=5e-4)
    tx = optax.chain(optax.sgd(1.0), jp.gates.box(math.log(0.01), math.log(100)))
    state, average = tx.init(logits), logits
    for sign in (-1.0, 1.0):
        updates, state = tx.update(
            jax.tree.map(lambda s, g=sign: jnp.full_like(s, 99 * g), logits), state, logits
        )
        logits = optax.apply_updates(logits, updates)
        average = optax.incremental_update(logits, average, 0.5)
        np.testing.assert_allclose(logits["kernel"], -sign * math.log(100), rtol=1e-6)
    expected = (math.log(4) / 2 + math.log(100) / 2) / 2 - math.log(100) / 2
    np.testing.assert_allclose(average["kernel"], expected, rtol=1e-5)


def test_continuous_sparsification_ends_in_a_step_and_rewinds():
    s = {"w": jnp.array([0.1, -0.1, 2.0])}
    gate = jp.gates.continuous_sparsification(200.0, 0.0)
    np.testing.assert_allclose(gate.sample(None, s)["w"], [2, 0, 2], atol=1e-6)
    np.testing.assert_allclose(gate.p_open(s)["w"], [1, 0, 1], atol=1e-6)
    again = jp.gates.rewound_logits(s, 200.0, 0.05)
    np.testing.assert_allclose(again["w"], [0.05, -20, 0.05])  # what was closed starts closed

    # a gate that the second round began with closed, and opened, is open in the third
    reopened = {"w": again["w"] + jnp.array([0.0, 20.5, -0.1])}
    third = jp.gates.rewound_logits(reopened, 200.0, 0.05)["w"]
    np.testing.assert_allclose(third, [0.05, 0.05, -10], rtol=1e-4)


@pytest.mark.parametrize("initial", [0.0, 0.05, -0.2])
def test_continuous_sparsification_starts_with_every_weight_at_its_value(initial):
    params = {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    logits = jp.gates.logits(jp.kernels(params), logit=initial)
    gates = jp.gates.continuous_sparsification(1.0, initial).sample(None, logits)
    np.testing.assert_allclose(gates["kernel"], 1, rtol=1e-6)
    traced = jax.jit(lambda s0: jp.gates.continuous_sparsification(1.0, s0).sample(None, logits))
    np.testing.assert_allclose(traced(initial)["kernel"], 1, rtol=1e-6)


def test_the_initial_logit_is_one_number():
    first = {"w": jnp.zeros(3)}
    for wrong in (first, jnp.zeros(3), None, "0"):
        with pytest.raises(TypeError, match="initial is the value at which all logits start, one"):
            jp.gates.rewound_logits(first, 200.0, wrong)
        with pytest.raises(TypeError, match="initial is the value at which all logits start, one"):
            jp.gates.continuous_sparsification(1.0, wrong)
    with pytest.raises(ValueError, match=r"which is 0 for initial=-200\.0"):
        jp.gates.continuous_sparsification(1.0, -200.0)


def test_a_temperature_may_be_a_schedule():
    @jax.jit
    def gates(temperature):
        return jp.gates.binary_concrete(temperature).sample(KEY, jnp.array([0.5]))

    np.testing.assert_allclose(
        gates(jnp.float32(0.5)),
        jp.gates.binary_concrete(0.5).sample(KEY, jnp.array([0.5])),
        rtol=1e-6,
    )


# --- granularity ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "shape"),
    [(None, (3, 3, 4, 8)), (-2, (1, 1, 4, 1)), ((0, 1), (3, 3, 1, 1)), ((), (1,) * 4)],
)
def test_logits_have_an_entry_for_each_gate(axes, shape):
    params = {"kernel": jnp.ones((3, 3, 4, 8), jnp.bfloat16), "bias": None}
    logits = jp.gates.logits(params, axes, logit=1.5)
    assert logits["kernel"].shape == shape and logits["bias"] is None
    assert logits["kernel"].dtype == jnp.float32 and (logits["kernel"] == 1.5).all()
    jp.apply_masks(params, logits)  # broadcasts


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
@pytest.mark.parametrize(
    "family",
    [
        jp.gates.hard_concrete,
        jp.gates.binary_concrete,
        jp.gates.gumbel_softmax,
        jp.gates.continuous_sparsification,
    ],
)
def test_a_temperature_is_above_0(family, value):
    rest = (0.0,) if family is jp.gates.continuous_sparsification else ()
    with pytest.raises(ValueError, match=rf"{family.__name__}: .* must be above 0; got"):
        family(value, *rest)


@pytest.mark.parametrize("stretch", [{"low": 0.0}, {"high": 1.0}])
def test_the_stretch_reaches_beyond_0_and_1(stretch):
    with pytest.raises(ValueError, match="low < 0 and high > 1"):
        jp.gates.hard_concrete(**stretch)


def test_gates_that_do_not_fit_name_the_leaf_and_both_shapes():
    params = {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"'kernel' has shape \(1, 3\), wanted \(5, 4\)"):
        jp.apply_masks(params, LOGITS)


def test_axes_that_are_not_there():
    with pytest.raises(ValueError, match=r"'bias' has shape \(4,\), and not all of the axes -2"):
        jp.gates.logits({"bias": jnp.ones(4)}, axes=-2)
    with pytest.raises(ValueError, match="nothing to gate"):
        jp.gates.logits({"bias": None})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_chances_are_drawn_in_half_precision_too(dtype):
    """Sigmoid(-7) is 9.1e-4: of 400,000 gates 364 +- 19 are open."""
    logits = {"w": jnp.full(400_000, -7.0, dtype)}
    gates = jp.gates.bernoulli().sample(jax.random.key(0), logits)["w"]
    assert gates.dtype == dtype
    assert abs(int((gates.astype(jnp.float32) > 0.5).sum()) - 364) < 80
