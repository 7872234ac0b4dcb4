"""Children of one state: the same noise gives the same child, and the position stays."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.analysis import fork, instability, instability_at, jackknife, lerp

STOP = 12
RATES = optax.linear_schedule(0.5, 0.0, STOP)
MASKS = {"w": jnp.arange(12).reshape(4, 3) % 3 > 0, "b": None}


class State(NamedTuple):
    """As of any training loop."""

    params: Any
    opt_state: Any


def made(masks=None):
    """An optimizer, and a state at step 0."""
    tx = optax.sgd(RATES, momentum=0.9)
    params = {"w": jax.random.normal(jax.random.key(0), (4, 3)), "b": jnp.zeros(3)}
    if masks is not None:
        tx, params = jp.sparsify(tx, jp.fixed(masks)), jp.apply_masks(params, masks)
    return tx, State(params, tx.init(params))


def loss(params, x=None):
    x = jnp.linspace(-1, 1, 32).reshape(8, 4) if x is None else x
    outputs = jnp.tanh(x @ params["w"] + params["b"][None])
    return jnp.mean((outputs - jnp.sin(3 * x[:, :3])) ** 2)


def trainer(tx):
    def train(state, key, start, stop):
        def step(state, i):
            x = jax.random.normal(jax.random.fold_in(key, i), (2, 4))
            grads = jax.grad(loss)(state.params, x)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            return State(optax.apply_updates(state.params, updates), opt_state), None

        return jax.lax.scan(step, state, jnp.arange(start, stop))[0]

    return train


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


# --- fork ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_same_noise_gives_the_same_child(wrap):
    tx, state = made()
    keys = jnp.stack([jax.random.key(i) for i in (5, 5, 6)])
    children = wrap(lambda state: fork(trainer(tx), state, keys, 2, STOP))(state)
    first, twin, other = (jax.tree.map(lambda x, i=i: x[i], children) for i in range(3))
    assert equal(first, twin) and not equal(first, other)
    matrix = jp.pairwise(partial(instability, loss), children.params)
    assert float(matrix[0, 1]) == 0.0  # exactly


def test_children_are_a_loop_at_the_same_position_of_the_schedule():
    tx, state = made()
    train, keys = trainer(tx), jax.random.split(jax.random.key(1), 3)
    state = train(state, jax.random.key(0), 0, 4)
    children = fork(train, state, keys, 4, STOP)
    assert children.opt_state[1].count.tolist() == [STOP] * 3
    for i in range(3):
        alone = train(state, keys[i], 4, STOP)
        np.testing.assert_allclose(children.params["w"][i], alone.params["w"], rtol=1e-4, atol=1e-5)


def test_children_share_their_masks():
    tx, state = made(MASKS)
    children = fork(trainer(tx), state, jax.random.split(jax.random.key(1), 3), 0, STOP)
    between = lerp(*(jax.tree.map(lambda x, i=i: x[i], children.params) for i in (0, 1)), 0.5)
    np.testing.assert_array_equal(between["w"] != 0, MASKS["w"])


def test_a_fork_at_the_end_is_copies():
    tx, state = made()
    children = fork(trainer(tx), state, jax.random.split(jax.random.key(1), 3), STOP, STOP)
    for i in range(3):
        assert equal(jax.tree.map(lambda x, i=i: x[i], children), state)


@pytest.mark.parametrize(
    ("start", "stop", "kind", "fragment"),
    [
        (-1, 5, ValueError, "start must be at least 0; got -1."),
        (6, 5, ValueError, "stop must be at least 6; got 5."),
        (0.5, 5, TypeError, "start must be an int; got 0.5."),
        (0, True, TypeError, "stop must be an int; got True."),
    ],
)
def test_no_fork(start, stop, kind, fragment):
    tx, state = made()
    with pytest.raises(kind) as error:
        fork(trainer(tx), state, jax.random.split(jax.random.key(1), 3), start, stop)
    assert fragment in str(error.value)


# --- instability_at ------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [None, MASKS], ids=["dense", "pruned"])
def test_instability_falls_to_exactly_zero_at_the_end(masks):
    tx, state = made(masks)
    train = trainer(tx)
    matrices = instability_at(jax.random.key(0), train, loss, state, [0, 6, STOP], STOP)
    assert matrices.shape == (3, 3, 3)
    off = matrices[:, ~np.eye(3, dtype=bool)]
    assert (off[0] > 0).all() and off[1].mean() < off[0].mean() and (off[2] == 0).all()
    estimate = jax.vmap(jackknife)(matrices)
    assert estimate.mean.shape == estimate.standard_error.shape == (3,)


def test_it_is_a_trunk_and_its_forks():
    tx, state = made()
    train, key = trainer(tx), jax.random.key(3)
    keys = jnp.stack([jax.random.fold_in(key, i) for i in range(4)])
    at_5 = train(train(state, keys[0], 0, 2), keys[0], 2, 5)
    children = fork(train, at_5, keys[1:], 5, STOP)
    expected = jp.pairwise(partial(instability, loss, points=5), children.params)
    matrices = instability_at(key, train, loss, state, [2, 5], STOP, points=5)
    np.testing.assert_allclose(matrices[1], expected, rtol=1e-5, atol=1e-7)


def test_a_dict_of_losses_and_another_state():
    tx, state = made()
    inner = trainer(tx)
    train = lambda state, key, start, stop: {"s": inner(state["s"], key, start, stop)}
    matrices = instability_at(
        jax.random.key(0),
        train,
        lambda params: {"a": loss(params), "b": 2 * loss(params)},
        {"s": state},
        [0],
        STOP,
        children=2,
        params=lambda state: state["s"].params,
    )
    assert matrices["a"].shape == (1, 2, 2)
    np.testing.assert_allclose(matrices["b"], 2 * matrices["a"], rtol=1e-5)


def test_seeds_of_it_are_a_vmap():
    tx, state = made()
    measure = lambda key: instability_at(key, trainer(tx), loss, state, [0, 6], STOP, points=3)
    keys = jax.random.split(jax.random.key(0), 2)
    lanes = jax.jit(jax.vmap(measure))(keys)
    np.testing.assert_allclose(lanes[1], measure(keys[1]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("forks", "kwargs", "kind", "fragment"),
    [
        ([], {}, ValueError, "forks is a list of steps, such as [0, 100]; got []"),
        (3, {}, ValueError, "such as [0, 100]; got 3"),
        ([3, 3], {}, ValueError, "every fork (they rise) must be at least 4; got 3."),
        ([5, 2], {}, ValueError, "must be at least 6; got 2."),
        ([-1], {}, ValueError, "must be at least 0; got -1."),
        ([0, 13], {}, ValueError, "stop must be at least 13; got 12."),
        ([0.5], {}, TypeError, "must be an int; got 0.5."),
        ([0], {"children": 1}, ValueError, "children must be at least 2; got 1."),
        ([0], {"points": 4}, ValueError, "points must be odd"),
    ],
)
def test_no_stability(forks, kwargs, kind, fragment):
    tx, state = made()
    with pytest.raises(kind) as error:
        instability_at(jax.random.key(0), trainer(tx), loss, state, forks, STOP, **kwargs)
    assert fragment in str(error.value)
