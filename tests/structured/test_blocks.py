"""Scores of blocks."""

import jax.numpy as jnp
import pytest

import jaxprune as jp
from tests.coupling.test_stated import raised

PARAMS = {
    "params": {
        "block_0": {"conv": {"kernel": jnp.array([[1.0, -2.0]])}, "bias": jnp.ones(2)},
        "block_1": {"conv": {"kernel": jnp.array([[0.5, 3.0]])}, "bias": jnp.ones(2)},
    }
}


def loss(params):
    """Half the sum of squares: dL/dw = w, H = I."""
    return sum((block["conv"]["kernel"] ** 2).sum() / 2 for block in params["params"].values())


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        (lambda: jp.magnitude(jp.kernels(PARAMS)), [3.0, 3.5]),
        (lambda: jp.at_init.snip(loss, PARAMS), [1 + 4, 0.25 + 9]),  # |w g| = w^2
        (lambda: jp.at_init.grasp(loss, PARAMS), [1 + 4, 0.25 + 9]),  # w H g = w^2
    ],
)
def test_the_sum_over_the_weights_of_a_block(scores, wanted):
    found = jp.structured.block_scores(scores(), ["block_0", "block_1"])
    assert [float(s) for s in found.values()] == wanted
    assert sorted(found, key=found.get)[0] == "block_0"


def test_names_are_whole_parts_of_paths():
    scores = jp.magnitude(jp.kernels(PARAMS))
    assert list(jp.structured.block_scores(scores, ["params/block_0/conv"])) == [
        "params/block_0/conv"
    ]
    assert "there is no block 'block'" in raised(
        lambda: jp.structured.block_scores(scores, ["block"])
    )
    assert "a list of names of modules, such as [\"BasicBlock_3\"]; got 'block_0'" in raised(
        lambda: jp.structured.block_scores(scores, "block_0"), TypeError
    )
    said = raised(lambda: jp.structured.block_scores(scores, ["block_0/bias"]))
    assert "no leaf of block 'block_0/bias' has a score" in said
