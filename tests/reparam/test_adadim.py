"""AdaDim: the worked numbers, the choice of each layer, and clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

OUTLIER = jnp.array([[0.1, -0.2], [8.0, 6.0]])  # the second input has large weights
X = jnp.array([[1.0, 0.01]])


def test_a_grid_for_each_input_by_hand():
    """Two bits: the mean square is 0.0254 by outputs and 2.2e-5 by inputs."""
    outputs = lambda params: X @ params["kernel"]
    method = jp.reparam.adadim(outputs, 2)
    learned = method.init({"kernel": OUTLIER})
    assert learned.choice["kernel"] == 1
    error = lambda method, learned: ((outputs(method.apply(learned)) - X @ OUTLIER) ** 2).mean()
    assert float(error(method, learned)) == pytest.approx(2.2e-5, abs=5e-7)
    of_outputs = learned._replace(choice={"kernel": jnp.zeros(())})
    assert float(error(method, of_outputs)) == pytest.approx(0.0254, abs=5e-5)
    inputs = jp.reparam.fake_quantization(2, -2, symmetric=False)
    by_inputs = inputs.apply(inputs.init({"kernel": OUTLIER}))
    np.testing.assert_array_equal(method.apply(learned)["kernel"], by_inputs["kernel"])


def test_each_leaf_and_each_seed_has_its_choice():
    """Input 3 and output 3 are small. Where their weights are large, they have grids alone."""
    plain = jax.random.normal(jax.random.key(0), (2, 8, 8))
    rows = plain.at[:, 3].multiply(50.0)
    columns = plain.at[:, :, 3].multiply(50.0)
    stack = {"a": jnp.stack([rows[0], columns[0]]), "b": jnp.stack([columns[1], rows[1]])}
    small = jnp.ones(8).at[3].set(0.02)
    outputs = lambda w: jax.tree.map(lambda w: small[:, None] * w * small[None], w)
    method = jp.reparam.adadim(outputs, bits=3, prunable=lambda params: params)
    choice = jax.vmap(method.init)(stack).choice
    np.testing.assert_array_equal(choice["a"], [1, 0])
    np.testing.assert_array_equal(choice["b"], [0, 1])


def test_zeros_stay_zeros():
    w = jax.random.normal(jax.random.key(0), (8, 4)) + 1
    w = w * (jax.random.uniform(jax.random.key(1), (8, 4)) < 0.5)
    method = jp.reparam.adadim(bits=2, axes=((), -2))
    used = method.apply(method.init({"kernel": w}))["kernel"]
    np.testing.assert_array_equal(used[w == 0], 0)


def test_clear_errors():
    with pytest.raises(ValueError, match=r"adadim: bits is an int from 2 to 16; got 1"):
        jp.reparam.adadim(bits=1)
    for axes in (-1, ()):
        with pytest.raises(ValueError, match=r"axes is a sequence to choose from.*got"):
            jp.reparam.adadim(axes=axes)
    with pytest.raises(ValueError, match=r"not all of the axes 5"):
        jp.reparam.adadim(axes=(-1, 5)).init({"kernel": OUTLIER})
