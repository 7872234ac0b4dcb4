"""The laws of structured scores: a new score enters by one line of `SCORES`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import structured
from tests.quick import quick

SIZES = {"a": 6, "b": 4}


def fn(params, x):
    for name in SIZES:
        x = jax.nn.relu(x @ params[name]["kernel"] * params[name]["scale"][None])
    return x @ params["c"]["kernel"]


def drawn(seed):
    """Weights, or their gradients."""
    shapes = {"a": (5, 6), "b": (6, 4), "c": (4, 3)}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(seed), 3), strict=True))
    return {
        name: {"kernel": jax.random.normal(keys[name], shape)}
        | ({"scale": jax.random.normal(keys[name], shape[1:]) + 2} if name in SIZES else {})
        for name, shape in shapes.items()
    }


PARAMS, GRADS = drawn(0), drawn(1)
STRUCTURE = jp.analyze(fn, PARAMS, jnp.ones((1, 5)))


class Law(NamedTuple):
    """A score, made of a structure, and what it promises beside what all do."""

    make: Callable
    permutes: bool = True  # permuted neurons have permuted scores
    zero_lowest: bool = True  # a neuron that is zero scores lowest in its group
    robust: bool = False  # a weight that diverged scores inf, and changes no other neuron's rank


per_group, normalized = structured.per_group, structured.normalized
SCORES = {
    "l1": Law(per_group),
    "l2": Law(lambda s: per_group(s, structured.square)),
    "taylor": Law(lambda s: per_group(s, jp.saliency)),
    "signed taylor": Law(lambda s: per_group(s, structured.taylor, of=structured.abs_of_sum)),
    "fisher": Law(lambda s: per_group(s, jp.fisher)),
    "scale": Law(lambda s: per_group(s, prunable=jp.matching("*/scale"))),
    "with scales": Law(
        lambda s: per_group(s, structured.square, jp.matching("*/kernel", "*/scale"))
    ),
    "random": Law(partial(structured.random, jax.random.key(0)), permutes=False, zero_lowest=False),
    "median": Law(structured.geometric_median, zero_lowest=False, robust=True),
    "lamp": Law(lambda s: jp.lamp(per_group(s)), robust=True),
    "over the mean": Law(lambda s: normalized(per_group(s)), robust=True),
    "over the max": Law(
        lambda s: normalized(per_group(s, structured.square), jnp.max), robust=True
    ),
    "over the norm": Law(lambda s: normalized(per_group(s), jnp.linalg.norm), robust=True),
    "median over the mean": Law(
        lambda s: normalized(structured.geometric_median(s)), zero_lowest=False, robust=True
    ),
}
every_score = pytest.mark.parametrize("name", SCORES)


def those_that(promise):
    return pytest.mark.parametrize("name", [n for n, s in SCORES.items() if getattr(s, promise)])


def scored(name, structure=STRUCTURE):
    score = SCORES[name].make(structure)
    adam = lambda grads: optax.ScaleByAdamState(jnp.zeros(()), grads, jax.tree.map(abs, grads))
    return lambda params, grads: score(params, grads=grads, step=3, opt_state=adam(grads))


def close(found, wanted, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **{"rtol": 1e-4} | tolerance), found, wanted)


def on_neurons(change, tree, group="a"):
    """`tree`, of which `change` has been made to all that is on the neurons of a group."""
    mine, reader = tree[group], {"a": "b", "b": "c"}[group]
    kernel, scale, reads = mine["kernel"], mine["scale"], tree[reader]["kernel"]
    return tree | {
        group: {"kernel": change(kernel.T).T, "scale": change(scale)},
        reader: tree[reader] | {"kernel": change(reads)},
    }


@pytest.mark.full
@every_score
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_float32_by_group_summed_in_float32(name, dtype):
    low = jax.tree.map(lambda x: x.astype(dtype), (PARAMS, GRADS))
    found = scored(name, jp.analyze(fn, low[0], jnp.ones((1, 5), dtype)))(*low)
    assert {group: s.shape for group, s in found.items()} == {g: (n,) for g, n in SIZES.items()}
    assert all(s.dtype == jnp.float32 for s in found.values())
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    close(found, scored(name)(*wide), atol=1e-6)


@pytest.mark.full
@every_score
def test_under_jit_and_vmap_it_is_the_same(name):
    seeds = [(drawn(i), drawn(i + 9)) for i in range(3)]
    loop = [scored(name)(*seed) for seed in seeds]
    close(jax.jit(scored(name))(*seeds[0]), loop[0])
    stack = jax.tree.map(lambda *x: jnp.stack(x), *seeds)
    together = jax.vmap(scored(name))(*stack)
    close(together, jax.tree.map(lambda *x: jnp.stack(x), *loop))


@those_that("permutes")
@pytest.mark.parametrize("group", SIZES)
def test_permuted_neurons_have_permuted_scores(name, group):
    order = jax.random.permutation(jax.random.key(2), SIZES[group])
    permuted = (on_neurons(lambda x: x[order], tree, group) for tree in (PARAMS, GRADS))
    wanted = scored(name)(PARAMS, GRADS)
    close(scored(name)(*permuted), wanted | {group: wanted[group][order]})


@those_that("zero_lowest")
@pytest.mark.parametrize("group", SIZES)
def test_a_neuron_that_is_zero_scores_lowest(name, group):
    found = scored(name)(on_neurons(lambda x: x.at[2].set(0.0), PARAMS, group), GRADS)[group]
    assert found[2] == 0 and (jnp.delete(found, 2) > 0).all()


@those_that("robust")
@pytest.mark.parametrize("value", quick([jnp.nan, jnp.inf, -jnp.inf]))
def test_a_weight_that_diverged_decides_over_no_other_neuron(name, value):
    """Or the group is ranked by index."""
    others = np.array([0, 1, 2, 3, 5])
    ranks = lambda s: others[np.argsort(np.asarray(s)[others])].tolist()
    kernel = PARAMS["a"]["kernel"]
    hurt, without = (
        scored(name)(PARAMS | {"a": PARAMS["a"] | {"kernel": kernel}}, GRADS)["a"]
        for kernel in (kernel.at[2, 4].set(value), kernel.at[:, 4].set(0.0))  # zero: no neighbor
    )
    assert hurt[4] == jnp.inf and np.isfinite(hurt[others]).all()
    assert ranks(hurt) == ranks(without)
    kept = jp.pick(STRUCTURE, {"a": hurt}, 0.5, groups=["a"])["a"]
    assert np.flatnonzero(~kept).tolist() == sorted(ranks(without)[:3])
