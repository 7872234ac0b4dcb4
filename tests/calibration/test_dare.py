"""DARE: the worked numbers, which leaves change, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

KEY = jax.random.key(0)
START = {"kernel": jnp.array([[0.2, -0.1, 0.4, 0.3]]), "bias": jnp.zeros(2)}
TUNED = {"kernel": jnp.array([[0.25, -0.13, 0.38, 0.36]]), "bias": jnp.ones(2)}
X = jnp.array([[1.0, 2, -1, 0.5]])


def test_a_change_is_dropped_or_scaled():
    made = np.asarray(jp.calibration.dare(KEY, START, TUNED, 0.5)["kernel"])
    scaled = np.array([[0.3, -0.16, 0.36, 0.42]], np.float32)
    start = np.asarray(START["kernel"])
    kept = np.abs(made - scaled) < 1e-6
    np.testing.assert_allclose(made, np.where(kept, scaled, start), atol=1e-6)
    assert kept.any() and not kept.all()
    some = jp.calibration.dare(KEY, START, TUNED, 0.5, rescale=0.8)["kernel"]
    other = np.array([[0.2625, -0.1375, 0.375, 0.375]])
    np.testing.assert_allclose(some, np.where(kept, other, start), atol=1e-6)


def test_nothing_dropped_is_what_was_tuned_and_other_leaves_are_too():
    made = jp.calibration.dare(KEY, START, TUNED, 0.0)
    np.testing.assert_allclose(made["kernel"], TUNED["kernel"], atol=1e-7)
    made = jp.calibration.dare(KEY, START, TUNED, 0.9)
    assert made["bias"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("rescale", "bias", "std"), [(None, 0, 0.2581), ({"q": 0.3}, 0.0267, 0.0860)]
)
def test_the_mean_and_the_spread_of_an_output(rescale, bias, std):
    tree = None if rescale is None else {"kernel": rescale["q"], "bias": None}
    one = lambda key: jnp.sum(X * jp.calibration.dare(key, START, TUNED, 0.9, tree)["kernel"])
    outputs = jax.jit(jax.vmap(one))(jax.random.split(KEY, 20_000))
    wanted = float(jnp.sum(X * TUNED["kernel"]))
    assert float(wanted - outputs.mean()) == pytest.approx(bias, abs=0.006)
    assert float(outputs.std()) == pytest.approx(std, rel=0.03)


def test_leaves_and_keys_have_draws_of_their_own():
    start = {"a": {"kernel": jnp.zeros((8, 8))}, "b": {"kernel": jnp.zeros((8, 8))}}
    tuned = jax.tree.map(jnp.ones_like, start)
    made = jp.calibration.dare(KEY, start, tuned, 0.5)
    other = jp.calibration.dare(jax.random.key(1), start, tuned, 0.5)
    assert (made["a"]["kernel"] != made["b"]["kernel"]).any()
    assert (made["a"]["kernel"] != other["a"]["kernel"]).any()


def test_the_divisor_is_that_of_the_least_bound():
    change, mean, drop = TUNED["kernel"].T - START["kernel"].T, X[0], 0.9
    made = float(jp.calibration.dare_rescale(change, mean, drop))
    c = np.asarray(change[:, 0] * mean, np.float64)
    phi, q = (1 - 1.8) / np.log(0.1 / 0.9), np.linspace(0.1, 1, 1000, endpoint=False)
    bound = 0.37 * (1 - 0.1 / q) * c.sum() + 0.37**2 * phi * (c**2).sum() / (4 * q**2)
    assert made == pytest.approx(q[np.argmin(np.abs(bound + np.log(2 / 0.05)))], abs=1e-5)
    large = float(jp.calibration.dare_rescale(-1000 * jnp.abs(change), jnp.abs(mean), drop))
    assert 0.1 <= large < 1 and large != made


def test_what_cannot_be_is_told():
    of = jp.calibration
    with pytest.raises(ValueError, match="dare takes the probability that a change is dropped"):
        of.dare(KEY, START, TUNED, 90)
    with pytest.raises(ValueError, match=r"rescale of 'kernel' must be in \(0, 1\], got 2"):
        of.dare(KEY, START, TUNED, 0.5, 2.0)
    with pytest.raises(ValueError, match="dare: start"):
        of.dare(KEY, {"kernel": START["kernel"]}, TUNED)
    with pytest.raises(ValueError, match=r"drop must be in \(0, 1\), got 1"):
        of.dare_rescale(jnp.ones((2, 2)), jnp.ones(2), 1)
    with pytest.raises(ValueError, match=r"risk is in \(0, 1\) and strength above 0"):
        of.dare_rescale(jnp.ones((2, 2)), jnp.ones(2), 0.5, risk=0)
