"""The contract of a family of gates. A new family enters by one line of `GATES`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

GATES = {
    "hard_concrete": jp.gates.hard_concrete(),
    "binary_concrete": jp.gates.binary_concrete(0.5),
    "binary_concrete hard": jp.gates.binary_concrete(0.5, hard=True),
    "bernoulli": jp.gates.bernoulli(),
    "straight_through": jp.gates.straight_through(),
    "continuous_sparsification": jp.gates.continuous_sparsification(3.0, float("inf")),
    "gumbel_softmax": jp.gates.gumbel_softmax(0.5),
    "gumbel_softmax hard": jp.gates.gumbel_softmax(0.5, hard=True),
}
WITHOUT_CHANCE = {"straight_through", "continuous_sparsification"}
BINARY = {"binary_concrete hard", "bernoulli", "straight_through", "gumbel_softmax hard"}

LOGITS = {"kernel": jnp.array([[2.0, 0.0, -2.0]]), "bias": None}
KEY = jax.random.key(0)
each = pytest.mark.parametrize("name", GATES)


def functions(gate):
    """The three functions of a family, of logits alone."""
    return [lambda logits: gate.sample(KEY, logits), gate.deterministic, gate.p_open]


@each
def test_gates_are_like_their_logits_and_between_0_and_1(name):
    for f in functions(GATES[name]):
        gates = f(LOGITS)
        assert gates["bias"] is None and gates["kernel"].shape == (1, 3)
        assert gates["kernel"].dtype == jnp.float32
        assert (gates["kernel"] >= 0).all() and (gates["kernel"] <= 1).all()


@each
def test_a_higher_logit_is_more_open(name):
    for f in (GATES[name].deterministic, GATES[name].p_open):
        assert (jnp.diff(f(jnp.linspace(-2, 2, 8))) >= 0).all()


@pytest.mark.parametrize("name", sorted(BINARY | {"hard_concrete"}))
def test_the_probability_is_how_often_a_gate_is_not_0(name):
    gate, logits = GATES[name], jnp.array([1.0, -0.5, 0.3])
    drawn = jax.vmap(gate.sample, (0, None))(jax.random.split(KEY, 10_000), logits)
    np.testing.assert_allclose((drawn > 0).mean(0), gate.p_open(logits), atol=0.02)


@each
def test_samples_and_probabilities_have_a_slope(name):
    sample, _, p_open = functions(GATES[name])
    for f in (sample, p_open):
        total = lambda s, f=f: jnp.arange(1.0, 4) @ f(s)
        slope = jax.grad(total)(jnp.array([0.2, 0.1, -0.3]))
        assert jnp.isfinite(slope).all() and (slope != 0).any()


@each
def test_jit_and_vmap_change_nothing(name):
    keys = jax.random.split(KEY, 3)
    seeds = jnp.stack([LOGITS["kernel"] + i for i in range(3)])
    together = jax.jit(jax.vmap(GATES[name].sample))(keys, seeds)
    for i in range(3):
        np.testing.assert_allclose(together[i], GATES[name].sample(keys[i], seeds[i]), atol=1e-6)
    for f in (GATES[name].deterministic, GATES[name].p_open):
        np.testing.assert_allclose(jax.jit(jax.vmap(f))(seeds)[1], f(seeds[1]), atol=1e-6)


@each
def test_params_keep_their_dtype_and_what_has_no_gate(name):
    params = {"kernel": jnp.ones((5, 3), jnp.bfloat16), "bias": jnp.ones(3, jnp.bfloat16)}
    gated = jp.apply_masks(params, GATES[name].sample(KEY, LOGITS))
    assert {w.dtype for w in jax.tree.leaves(gated)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(gated["bias"], params["bias"])


@each
def test_a_key_draws_anew_for_every_leaf_or_is_not_needed(name):
    gate, logits = GATES[name], {"a": jnp.zeros((4, 8)), "b": jnp.zeros((4, 8))}
    if name in WITHOUT_CHANCE:
        without, with_key = gate.sample(None, logits), gate.sample(KEY, logits)
        jax.tree.map(np.testing.assert_array_equal, without, with_key)
        return
    first, second = (gate.sample(jax.random.key(i), logits) for i in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, gate.sample(jax.random.key(0), logits))
    assert (first["a"] != second["a"]).any() and (first["a"] != first["b"]).any()
    with pytest.raises(TypeError, match=r"needs a key of jax.random.*deterministic\(logits\)"):
        gate.sample(None, logits)


@each
def test_binary_gates_are_exactly_0_or_1(name):
    gates = GATES[name].sample(KEY, jnp.tile(jnp.array([[1.0, 0.0, -1.0]]), (1000, 1)))
    assert (set(np.unique(gates)) == {0.0, 1.0}) == (name in BINARY)


@each
def test_a_price_closes_gates(name):
    logits = jnp.array([0.5, 0.2, -0.1])
    slope = jax.grad(lambda s: GATES[name].p_open(s)[0])(logits)
    assert slope[0] > 0
