"""ITOP: the union of all masks so far, through every nesting."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.transforms import loss, tiny_params

KEY = jax.random.key(0)
fraction = optax.cosine_decay_schedule(0.5, 100, alpha=0.01)


def run(tx, steps):
    """The states after each step."""
    params, states = tiny_params(), []
    state = tx.init(params)
    params = jp.apply_masks(params, jp.get_masks(state))
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    for _ in range(steps):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        states.append(state)
    return states


def r_s(state):
    return float(1 - jp.sparsity(jp.dynamic.ever_active(state)))


def test_the_cosine_of_itop_and_granet():
    found = [float(fraction(step)) for step in (0, 25, 50, 75, 100)]
    assert found == pytest.approx([0.5, 0.4275, 0.2525, 0.0775, 0.005], abs=5e-5)


@pytest.mark.full
@pytest.mark.parametrize("method", [jp.set, jp.rigl])
def test_it_is_the_union_of_all_masks(method):
    tx = jp.sparsify(optax.adam(0.05), jp.every(2, jp.itop(method(KEY, 0.8, fraction))))
    first = jp.get_masks(tx.init(tiny_params()))
    states = run(tx, 7)
    seen = [np.asarray(m) for m in jax.tree.leaves(first)]
    for state in states:
        seen = [
            a | np.asarray(m)
            for a, m in zip(seen, jax.tree.leaves(jp.get_masks(state)), strict=True)
        ]
        jax.tree.map(
            np.testing.assert_array_equal, jax.tree.leaves(jp.dynamic.ever_active(state)), seen
        )
    rates = [r_s(state) for state in states]
    assert rates == sorted(rates) and rates[0] > 0.2 and rates[-1] > rates[0] + 0.02


def test_static_masks_explore_nothing_and_dense_ones_everything():
    static, dense = (
        jp.itop(t) for t in (jp.static(KEY, 0.8, jp.uniform), jp.prune(jp.magnitude, jp.erk, 0.8))
    )
    assert r_s(run(jp.sparsify(optax.adam(0.05), static), 3)[-1]) == pytest.approx(0.2, abs=1e-3)
    assert r_s(run(jp.sparsify(optax.adam(0.05), dense), 3)[-1]) == 1


@pytest.mark.full
@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: jp.itop(jp.every(2, t)),
        lambda t: jp.every(2, jp.itop(t)),
        lambda t: jp.chain(jp.every(2, jp.itop(t)), jp.every(9, jp.rigl(KEY, 0.8), start=50)),
        lambda t: jp.every(2, jp.chain(jp.itop(t))),
    ],
    ids=["itop of every", "every of itop", "in a chain", "every of a chain"],
)
def test_it_is_found_in_every_nesting(wrap):
    plain = run(jp.sparsify(optax.adam(0.05), jp.every(2, jp.itop(jp.rigl(KEY, 0.8)))), 5)[-1]
    tx = optax.chain(optax.clip(1e6), jp.sparsify(optax.adam(0.05), wrap(jp.rigl(KEY, 0.8))))
    state = run(tx, 5)[-1]
    assert jp.overlap(jp.get_masks(plain), jp.get_masks(state)) == 1
    assert r_s(state) == r_s(plain) > 0.2
    as_restored = {"a": {"mask_state": {"masks": 0, "ever_active": jp.dynamic.ever_active(state)}}}
    assert jp.overlap(jp.dynamic.ever_active(as_restored), jp.dynamic.ever_active(state)) == 1


def test_nobody_remembers():
    state = jp.sparsify(optax.adam(0.1), jp.rigl(KEY, 0.8)).init(tiny_params())
    with pytest.raises(ValueError, match="has 0 records") as error:
        jp.dynamic.ever_active(state)
    assert "every(100, itop(rigl(key, 0.9)))" in str(error.value)


def test_no_transform():
    with pytest.raises(TypeError, match=r"itop needs a mask transform.*got rigl"):
        jp.itop(jp.rigl)


def test_the_masks_and_the_memory_share_no_buffer():
    """A state is donated whole."""
    params = {"kernel": jnp.ones((4, 4))}
    state = jp.itop(jp.rigl(KEY, 0.5)).init(params)
    pointers = [
        x.unsafe_buffer_pointer() for x in jax.tree.leaves((state.masks, state.ever_active))
    ]
    assert len(set(pointers)) == 2
