"""Choices of n of every m blocks, gates with a bottleneck, bi-masks: laws and worked numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.coupling.test_stated import raised

KEY = jax.random.key(0)
close = np.testing.assert_allclose


# --- n of m ---------------------------------------------------------------------------------------


def test_the_numbers_of_the_card():
    logits = jnp.zeros(6).at[2].set(0.02)  # blocks 0 and 3
    p = jax.nn.softmax(100 * logits)
    close(p[jnp.array([2, 0])], [0.5964, 0.0807], atol=1e-4)
    close(jp.gates.n_of_m(2, 4).p_open(logits), [0.758, 0.242, 0.242, 0.758], atol=1e-3)
    np.testing.assert_array_equal(jp.gates.n_of_m(2, 4).deterministic(logits), [1, 0, 0, 1])


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4), (7, 14)])
def test_every_m_blocks_have_exactly_n(n, m):
    ways = jp.gates.choices(n, m)
    assert (ways.sum(1) == n).all() and len(np.unique(ways, axis=0)) == len(ways)
    gate, logits = jp.gates.n_of_m(n, m), jp.gates.depth_logits([*"ab" * m], n, m)
    drawn = gate.sample(KEY, logits)
    assert drawn.shape == (2, m) and set(np.unique(drawn)) == {0.0, 1.0}
    np.testing.assert_array_equal(drawn.sum(-1), n)
    for f in (gate.deterministic, gate.p_open, jp.gates.n_of_m(n, m, hard=False).deterministic):
        close(f(logits).sum(-1), n, rtol=1e-5)


def test_the_probability_is_how_often_a_block_stays_and_samples_have_a_slope():
    gate, logits = jp.gates.n_of_m(2, 4, scale=1.0), jnp.array([0.5, 0.0, 1.0, -1.0, 0.2, 0.0])
    drawn = jax.vmap(gate.sample, (0, None))(jax.random.split(KEY, 10_000), logits)
    close(drawn.mean(0), gate.p_open(logits), atol=0.02)
    slope = jax.grad(lambda s: gate.sample(KEY, s)[0])(logits)
    assert jnp.isfinite(slope).all() and (slope != 0).any()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: jp.gates.choices(4, 4), "0 < n < m integers; got n=4, m=4"),
        (lambda: jp.gates.n_of_m(1.0, 2), "integers; got n=1.0, m=2"),
        (lambda: jp.gates.n_of_m(20, 40), "Choose among fewer blocks at once"),
        (lambda: jp.gates.n_of_m(1, 2, temperature=0), "temperature must be above 0; got 0"),
        (lambda: jp.gates.depth_logits([*"abcdef"], 2, 4), r"Take an m of [2, 3, 6]"),
        (lambda: jp.gates.n_of_m(2, 4).p_open(jnp.zeros(4)), "has 6 choices; got logits of shape"),
    ],
)
def test_what_is_no_choice_is_refused(run, words):
    assert words in raised(run)


# --- the bottleneck -------------------------------------------------------------------------------

TWO = jp.gates.Bottleneck(jnp.array([1.0, 0.5]), jnp.array([-9.0, -1.0]))


def test_a_bottleneck_by_the_numbers_of_the_card():
    first = jax.tree.map(lambda x: x[:1], TWO)
    close(jp.gates.information(first), 4.5001, atol=1e-4)
    close(jp.gates.log_alpha(TWO), [-9.0, 0.386], atol=1e-3)
    close(jp.gates.vib().p_open(TWO), [1.0, 0.0206], atol=1e-4)
    np.testing.assert_array_equal(jp.gates.vib().deterministic(TWO), [1.0, 0.0])


def test_samples_have_the_mean_and_the_variance():
    keys = jax.random.split(KEY, 20_000)
    drawn = jax.vmap(jp.gates.vib().sample, (0, None))(keys, TWO)
    close(drawn.mean(0), TWO.mean, atol=0.02)
    close(drawn.var(0), jnp.exp(TWO.log_variance), rtol=0.05)


def test_information_falls_where_noise_grows_and_is_finite_at_a_mean_of_0():
    slope = jax.grad(jp.gates.information)(TWO)
    assert (slope.mean > 0).all() and (slope.log_variance < 0).all()
    at_0 = jp.gates.Bottleneck({"a": jnp.zeros(2), "b": None}, {"a": jnp.full(2, -80.0), "b": None})
    total, slope = jax.value_and_grad(jp.gates.information)(at_0)
    assert np.isfinite(total) and all(jnp.isfinite(x).all() for x in jax.tree.leaves(slope))


def test_the_first_bottleneck_is_open_and_is_like_its_gates():
    first = jp.gates.bottleneck(KEY, {"a": jnp.zeros(500), "b": None})
    assert first.mean["b"] is None and first.mean["a"].shape == (500,)
    close([first.mean["a"].mean(), first.log_variance["a"].mean()], [1.0, -9.0], atol=0.002)
    assert (jp.gates.vib().deterministic(first)["a"] == first.mean["a"]).all()
    assert "got ndarray" in raised(lambda: jp.gates.vib().p_open(np.ones(2)), TypeError)
    assert "needs a key" in raised(lambda: jp.gates.bottleneck(None, {"a": jnp.ones(2)}), TypeError)


# --- bi-masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "wanted"),
    [((0.6, 0.2, 0.2), 1.5566), ((0.8, 0.1, 0.1), 0.6495), ((0.98, 0.01, 0.01), -1.6627)],
)
def test_the_loss_of_a_choice_by_the_numbers_of_the_card(p, wanted):
    close(jp.gates.one_hot_loss(jnp.array(p)), wanted, atol=2e-4)


def test_the_loss_of_a_choice_has_its_ends():
    assert jp.gates.one_hot_loss(jnp.array([0.5, 0.5])) == jnp.inf
    assert jp.gates.one_hot_loss(jnp.array([0.0, 1.0, 0.0])) < -1e5
    assert "of two or more choices; got shape (1,)" in raised(
        lambda: jp.gates.one_hot_loss(jnp.ones(1))
    )


def test_a_bi_mask_is_importance_at_first_and_the_units_of_one_size_at_last():
    scores, logits = jnp.array([0.1, 3.0, -3.0, 0.2]), jnp.array([-jnp.inf, 0.0])
    mask = lambda weight: jp.gates.bi_mask(scores, logits, (1, 2), weight)
    close(mask(1.0), jax.nn.sigmoid(scores), rtol=1e-6)
    np.testing.assert_array_equal(mask(0.0), [0, 1, 0, 1])
    close(mask(0.4), 0.4 * mask(1.0) + 0.6 * mask(0.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "weight", "words"),
    [
        ((1, 2, 3), 0.5, "a logit for each size; got scores of shape (4,), logits of shape (2,)"),
        ((1, 5), 0.5, "there are 4 units, and no size 5 of them"),
        ((1, 2), 1.5, "weight is in [0, 1]; got 1.5"),
    ],
)
def test_what_is_no_bi_mask_is_refused(sizes, weight, words):
    assert words in raised(lambda: jp.gates.bi_mask(jnp.ones(4), jnp.ones(2), sizes, weight))
