"""Units that give zero: counted by hand, in any program, in many seeds."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.analysis import dead_relus

X = jnp.array([[1.0, 1.0], [1.0, -1.0]])
W = jnp.array([[1.0, -1.0, 0.0], [1.0, 0.0, 2.0]])  # products 2 -1 2 and 0 -1 -2


@pytest.mark.parametrize(
    "relu",
    [
        jax.nn.relu,
        lambda x: jnp.maximum(x, 0),
        lambda x: jnp.maximum(0.0, x),
        lambda x: jax.checkpoint(jax.nn.relu)(x),
        jax.jit(lambda x: 3 * nn.relu(x)),
        jax.nn.relu6,
    ],
)
def test_counted_by_hand(relu):
    """Zeros are 1 of 3 and 3 of 3; the second unit is zero for both examples."""
    rates = dead_relus(lambda w, x: relu(x @ w), W, X)
    assert float(rates.dynamic) == pytest.approx(4 / 6)
    assert float(rates.static) == pytest.approx(1 / 3)


def test_layers_count_by_their_units_and_places_of_a_convolution_are_units():
    def fn(params, x):
        x = nn.relu(nn.Conv(2, (1, 1), use_bias=False).apply({"params": params}, x))
        return nn.relu(x.sum((1, 2)) - 3.0)  # 1 and 0, and -3 twice

    image = jnp.ones((1, 2, 2, 1)).at[0, 0, 0, 0].set(-1.0)
    params = {"kernel": jnp.array([[[[1.0, -1.0]]]])}  # channels 3 ones and a zero, 3 zeros and 1
    rates = dead_relus(fn, params, image)
    assert float(rates.dynamic) == float(rates.static) == pytest.approx((4 + 2) / (8 + 2))


def test_under_jit_and_vmap_it_is_the_same_and_masks_change_it():
    fn = lambda params, x: nn.relu(nn.relu(x @ params["a"]) @ params["b"])
    draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
    stack, x = {"a": draw(0, 3, 4, 8), "b": draw(1, 3, 8, 5)}, draw(2, 16, 4)
    rates = jax.jit(jax.vmap(lambda p: dead_relus(fn, p, x)))(stack)
    for i in range(3):
        one = dead_relus(fn, jax.tree.map(lambda w, i=i: w[i], stack), x)
        np.testing.assert_allclose([one.dynamic, one.static], [r[i] for r in rates], rtol=1e-6)
    empty = jp.apply_masks(stack, {"a": stack["a"] > 9, "b": None})
    np.testing.assert_array_equal(jax.vmap(lambda p: dead_relus(fn, p, x))(empty), jnp.ones((2, 3)))


def test_bad_input():
    with pytest.raises(ValueError, match="the program has no ReLU"):
        dead_relus(lambda w, x: jnp.tanh(x @ w), W, X)
    with pytest.raises(ValueError, match=r"first axis .* got shapes \[\(\)\]"):
        dead_relus(lambda w, x: jax.nn.relu((x @ w).sum()), W, X)
