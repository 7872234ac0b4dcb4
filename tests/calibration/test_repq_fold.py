"""The fold is the same function, and the grids of all channels become one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.calibration import repq_fold

NORM = (jnp.array([1.0, 2.0]), jnp.array([0.5, -0.5]))
LAYER = (jnp.array([[1.0, 3.0], [2.0, -1.0]]), jnp.array([0.1, 0.2]))
GRID = (jnp.array([0.1, 0.3]), jnp.array([8.0, 5.0]))


def test_the_function_stays():
    x = jax.random.normal(jax.random.key(0), (20, 2)).at[0].set(jnp.array([0.3, -0.7]))
    give = lambda scale, bias, kernel, more: (x * scale[None] + bias[None]) @ kernel + more[None]
    folded = repq_fold(*NORM, *LAYER, *GRID)
    np.testing.assert_allclose(give(*folded[:4]), give(*NORM, *LAYER), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(give(*folded[:4])[0], [-2.9, 4.5], rtol=1e-5)


def test_levels_of_each_channel_become_levels_of_one_grid():
    folded, level = repq_fold(*NORM, *LAYER, *GRID), jnp.arange(16.0)[:, None]
    before = GRID[0][None] * (level - GRID[1][None])  # of each channel
    r = NORM[0] / folded.scale
    shift = NORM[1] / r - folded.bias
    after = before / r[None] - shift[None]
    wanted = jnp.tile(folded.step * (level - folded.zero), 2)
    np.testing.assert_allclose(after, wanted, atol=1e-6)


def test_mistakes():
    with pytest.raises(ValueError, match=r"kernel is \(channels, outputs\).*'kernel': \(2, 2\)"):
        repq_fold(jnp.ones(3), jnp.ones(3), *LAYER, *GRID)
    with pytest.raises(ValueError, match=r"steps are positive; got \[0.0, 0.3"):
        repq_fold(*NORM, *LAYER, jnp.array([0.0, 0.3]), GRID[1])
