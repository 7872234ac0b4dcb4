"""Ranking among groups of a kind: what makes them alike, and how many of each pool go."""

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp
from jaxprune.structured.isomorphic import signatures
from tests.coupling.test_analyze import weights
from tests.coupling.test_stated import raised

PARAMS = weights(k=(3, 3, 2, 4), l=(3, 3, 4, 6), a=(6, 8), b=(8, 5), c=(5, 2))


def fn(p, x):
    for kernel in (p["k"], p["l"]):
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    for kernel in (p["a"], p["b"], p["c"]):
        x = jnp.tanh(x @ kernel)
    return x


STRUCTURE = jp.analyze(fn, PARAMS, jnp.ones((1, 4, 4, 2)))
SCORES = {
    "k": jnp.arange(4.0),
    "l": jnp.arange(6.0),
    "a": jnp.arange(8.0) + 10,
    "b": jnp.arange(5.0) + 20,
}


def test_groups_are_alike_by_what_reads_them_and_where():
    found = signatures(STRUCTURE)
    conv, dot = "conv_general_dilated", "dot_general"
    assert found == {
        "k": ((conv, 4, 3), (conv, 4, 2)),
        "l": ((conv, 4, 3), (dot, 2, 0)),
        "a": ((dot, 2, 1), (dot, 2, 0)),
        "b": ((dot, 2, 1), (dot, 2, 0)),
    }


@pytest.mark.parametrize("wrapped", [jax.jit(fn), jax.checkpoint(fn)])
def test_calls_are_looked_through(wrapped):
    structure = jp.analyze(wrapped, PARAMS, jnp.ones((1, 4, 4, 2)))
    assert signatures(structure) == signatures(STRUCTURE)


@pytest.mark.full
def test_every_pool_loses_its_share_wherever_it_is_lowest():
    pruned = jp.structured.isomorphic(STRUCTURE)(SCORES, 0.5)
    # of a and b together round(6.5) = 6, all in a; k and l are alone
    assert {name: int(n) for name, n in pruned.items()} == {"k": 2, "l": 3, "a": 6, "b": 0}
    pick = jax.jit(lambda s: jp.pick(STRUCTURE, s, 0.5, jp.structured.isomorphic(STRUCTURE)))
    kept = pick(SCORES)
    assert {name: int(own.sum()) for name, own in kept.items()} == {"k": 2, "l": 3, "a": 2, "b": 5}


@pytest.mark.full
def test_under_jit_and_vmap():
    allocation = jax.jit(lambda s: jp.structured.isomorphic(STRUCTURE)(s, 0.5))
    twice = jax.tree.map(lambda s: jnp.stack([s, -s]), SCORES)
    together = jax.vmap(allocation)(twice)
    for i in range(2):
        alone = allocation(jax.tree.map(lambda s, i=i: s[i], twice))
        assert all(together[name][i] == alone[name] for name in alone)


def test_scores_of_other_groups():
    said = raised(lambda: jp.structured.isomorphic(STRUCTURE)({"z": jnp.ones(8)}, 0.5))
    assert "among the groups of its structure, ['k', 'l', 'a', 'b']; got scores of ['z']" in said


def test_scores_of_some_groups():
    """Those that `pick` was told: each pool loses its share of what is scored."""
    pruned = jp.structured.isomorphic(STRUCTURE)({"a": jnp.arange(8.0)}, 0.5)
    assert {name: int(n) for name, n in pruned.items()} == {"a": 4}
