"""CFSP's sparsities of blocks: numbers by hand, the mean, and bounds."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration import block_sparsities, turn


def test_the_sparsities_of_the_card():
    of = block_sparsities({"a": 30e3, "b": 10e3, "c": 8e3, "d": 24e3}, 0.5)
    kept = [1 - s for s in of.values()]
    np.testing.assert_allclose(kept, [0.7712, 0.3111, 0.2699, 0.6479], atol=6e-5)
    assert np.mean(list(of.values())) == pytest.approx(0.5)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9])
def test_the_mean_holds_and_no_block_keeps_more_than_all(sparsity):
    of = block_sparsities({"a": 9.0, "b": 1.0, "c": 0.0, "d": 0.0}, sparsity, scale=0.5)
    assert np.mean(list(of.values())) == pytest.approx(sparsity, abs=1e-12)
    assert all(-1e-12 <= s <= 1 for s in of.values())
    assert of["a"] == min(of.values()) and of["c"] == of["d"] == max(of.values())


def test_turns_are_angles_and_small_ones_are_exact():
    x = jnp.array([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert float(turn(x, x)) == 0
    assert float(turn(x, -x)) == pytest.approx(3)
    small = jnp.array([jnp.cos(1e-4), jnp.sin(1e-4)])
    assert float(turn(jnp.array([1.0, 0.0]), 5 * small)) == pytest.approx(1e-4 / np.pi, rel=1e-4)
    assert float(turn(jnp.zeros(2), jnp.ones(2))) == pytest.approx(0.5)


def test_mistakes():
    with pytest.raises(ValueError, match="before has shape"):
        turn(jnp.ones((2, 3)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="turns is empty"):
        block_sparsities({}, 0.5)
    with pytest.raises(ValueError, match="block 'a' has nan"):
        block_sparsities({"a": float("nan")}, 0.5)
    with pytest.raises(ValueError, match="scale must be positive"):
        block_sparsities({"a": 1.0}, 0.5, scale=0)
