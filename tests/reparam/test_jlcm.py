"""JLCM: the nearest code first, slopes by hand, steps to a neighbor, better than fixed codes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp


def test_at_first_it_is_the_codebook():
    w = jax.random.normal(jax.random.key(0), (32, 8))
    w = {"kernel": w * (jax.random.uniform(jax.random.key(1), (32, 8)) < 0.5)}
    fixed, both = jp.reparam.codebook(3, -1), jp.reparam.jlcm(3, -1)
    first, learned = fixed.init(w), both.init(w)
    np.testing.assert_allclose(both.apply(learned)["kernel"], fixed.apply(first)["kernel"])
    codes = [np.asarray(jp.reparam.codes(x)["kernel"])[w["kernel"] != 0] for x in (first, learned)]
    np.testing.assert_array_equal(*codes)
    assert codes[0].dtype == np.uint8
    assert jp.reparam.codebook_size(learned) == jp.reparam.codebook_size(first)


def test_slopes_by_hand():
    """Values 0, 1, 4, 9 in another order have the slopes 1, 2, 4, 5."""
    method = jp.reparam.jlcm(2)
    w = jnp.array([[1.0, 1, 1, 1, 1, 0]])
    values = {"kernel": jnp.array([[[4.0, 0, 1, 9]]])}
    positions = {"kernel": jnp.array([[0.2, 0.9, 1.4, 2.2, 7.0, 1.0]])}
    learned = method.init({"kernel": w})._replace(values=values, positions=positions)
    np.testing.assert_array_equal(method.apply(learned)["kernel"], [[0, 1, 1, 4, 9, 0]])
    g = jnp.array([[1.0, 2, 3, 1, 1, 1]])
    slopes = jax.grad(lambda x: (g * method.apply(x)["kernel"]).sum())(learned)
    np.testing.assert_array_equal(slopes.positions["kernel"], [[1, 2 * 2, 3 * 2, 4, 5, 0]])
    np.testing.assert_array_equal(slopes.values["kernel"], [[[1, 1, 5, 1]]])
    # no step beyond an end, but back from it
    upwards = jax.grad(lambda x: -method.apply(x)["kernel"].sum())(learned).positions["kernel"]
    np.testing.assert_array_equal(upwards, [[-1, -2, -2, -4, 0, 0]])


@pytest.mark.full
def test_learned_codes_rebuild_outputs_better_than_fixed_codes():
    """Block-wise: the outputs of a layer with correlated inputs; no code jumps over another."""
    mix = jax.random.normal(jax.random.key(0), (16, 16)) * 0.7 ** jnp.arange(16)[None]
    x = jax.random.normal(jax.random.key(1), (256, 16)) @ mix
    w = jax.random.normal(jax.random.key(2), (16, 8))

    def rebuilt(method, parts):
        loss = lambda learned: ((x @ method.apply(learned)["kernel"] - x @ w) ** 2).mean()
        rates = {"weights": optax.set_to_zero(), "values": optax.adam(3e-3)}
        rates |= {"starts": optax.set_to_zero()}
        rates |= {"positions": optax.chain(optax.adam(0.03), optax.clip(1.0))}
        learned = method.init({"kernel": w})
        tx = optax.partition(rates, type(learned)(*parts))

        def step(carry, _):
            learned, state = carry
            value, slopes = jax.value_and_grad(loss)(learned)
            updates, state = tx.update(slopes, state)
            return (optax.apply_updates(learned, updates), state), (value, learned)

        _, (values, path) = jax.lax.scan(step, (learned, tx.init(learned)), None, 300)
        return values, path

    fixed, _ = rebuilt(jp.reparam.codebook(2), ("weights", "values", "starts"))
    moved, path = rebuilt(jp.reparam.jlcm(2), ("weights", "values", "positions"))
    np.testing.assert_allclose(moved[0], fixed[0], rtol=1e-5)
    assert moved.min() < 0.75 * fixed.min() < 0.75 * fixed[0]
    codes = np.round(np.asarray(path.positions["kernel"])).clip(0, 3)
    assert abs(np.diff(codes, axis=0)).max() == 1


def test_clear_errors():
    with pytest.raises(ValueError, match=r"jlcm: bits is an int from 1 to 8.*got 9"):
        jp.reparam.jlcm(9)
    with pytest.raises(ValueError, match=r"jlcm: rounds is a whole number.*got 2.5"):
        jp.reparam.jlcm(rounds=2.5)
