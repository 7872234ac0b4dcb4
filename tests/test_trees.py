"""What is a stack, and what is said of what is none."""

import jax
import jax.numpy as jnp
import pytest

from jaxprune.trees import count_seeds


def test_seeds_are_counted_also_where_there_is_one_or_leaves_are_none():
    assert count_seeds({"a": jnp.ones((1, 2)), "b": None}) == 1
    assert count_seeds(jax.random.split(jax.random.key(0), 3)) == 3
    assert jax.jit(lambda x: x * count_seeds(x))(jnp.ones(4)).tolist() == [4] * 4


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        ({"a": jnp.ones((3, 2)), "b": jnp.ones((4,))}, r"'a' has 3 and 'b' 4, of shape \(4,\)"),
        ({"a": jnp.ones((2, 2)), "b": 1.0}, r"'b' is a scalar. From separate trees: .*jnp.stack"),
        ({"a": None}, "at least one array; every leaf is None"),
        ({"a": jnp.ones((0, 2))}, r"no seeds: 'a' has shape \(0, 2\)"),
    ],
)
def test_what_is_no_stack(stack, message):
    with pytest.raises(ValueError, match=message):
        count_seeds(stack)
