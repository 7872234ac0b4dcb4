"""Schedules: their ends, what is wrong in the middle, and masks when they go wrong unseen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.schedules import END, check_schedule, fraction_at, last_value, sparsity_at
from tests.quick import quick

PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (20, 50))}


def lookup(step):
    return jnp.array([0.0, 0.3, 0.6, 0.9])[jnp.clip(step, 0, 3)]


# schedules of users that level off at 0.9
RIGHT = {
    "polynomial": optax.polynomial_schedule(0.0, 0.9, 3, 70, 10),
    "step + 1": lambda step: jnp.clip(0.9 * (step + 1) / 100, 0.0, 0.9),
    "2 * step": lambda step: jnp.minimum(2 * step / 100, 1.0) * 0.9,
    "samples": lambda step: 0.9 * jnp.minimum(4096 * step, 400_000) / 400_000,
    "squared": lambda step: 0.9 * jnp.minimum(step * step, 6_400) / 6_400,
    "from the end": lambda step: 0.9 - 0.9 * jnp.maximum(100 - step, 0) / 100,
    "lookup": lookup,
    "int32": lambda step: 0.9 * jax.lax.min(step, jnp.int32(100)) / 100,
    "joined": optax.join_schedules(
        [optax.constant_schedule(0.0), optax.linear_schedule(0.0, 0.9, 50)], [20]
    ),
}


@pytest.mark.parametrize("name", quick(RIGHT))
def test_the_end_of_a_schedule(name):
    check_schedule(RIGHT[name])
    assert last_value(RIGHT[name]) == pytest.approx(0.9, abs=1e-7)
    at_end = jax.jit(lambda step: sparsity_at(RIGHT[name], step, step == 3))
    assert at_end(3) == pytest.approx(0.9, abs=1e-7)
    assert at_end(2) == pytest.approx(float(RIGHT[name](jnp.int32(2))), abs=1e-7)


@pytest.mark.parametrize("name", quick(["step + 1", "2 * step", "samples"]))
@pytest.mark.parametrize("method", quick(["dpf", "prune", "granet", "structured.prune"]))
def test_every_lands_on_the_end_of_a_schedule_of_integers(method, name):
    structure = jp.analyze(lambda p, x: jnp.tanh(x @ p["kernel"]) @ p["out"], WIDE, jnp.ones(20))
    transform, masks = {
        "dpf": lambda: (jp.dpf(RIGHT[name]), PARAMS),
        "prune": lambda: (jp.prune(jp.magnitude, jp.uniform, RIGHT[name]), PARAMS),
        "granet": lambda: (jp.granet(jax.random.key(0), RIGHT[name], 0.0), PARAMS),
        "structured.prune": lambda: (
            jp.structured.prune(
                structure, jp.structured.per_group(structure), sparsity=RIGHT[name]
            ),
            WIDE,
        ),
    }[method]()
    transform = jp.every(10, transform, start=2, stop=45)
    state = transform.init(masks)
    update = jax.jit(lambda s, i: transform.update(s, masks, step=i, grads=masks, opt_state=None))
    for step in (2, 12, 22, 32, 42, 45):
        state = update(state, jnp.int32(step))
    assert float(jp.sparsity(state.masks)) == pytest.approx(0.9, abs=1e-6)


WIDE = {**PARAMS, "out": jnp.ones((50, 3))}


def test_a_run_that_is_longer_than_the_end():
    late = lambda step: jnp.where(step < 2 * END, 0.1, 0.5)
    at_end = jax.jit(lambda step: sparsity_at(late, step, True))
    assert at_end(3 * END) == 0.5


# --- wrong in the middle --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf, 1.0, 2.0, -0.1])
@pytest.mark.parametrize("at", [7, 3_000])
def test_a_schedule_that_is_wrong_at_one_step_is_refused(bad, at):
    schedule = lambda step: jnp.where(step == at, bad, 0.5)
    with pytest.raises(ValueError, match=f"is, at step {at:,}, {bad:g}"):
        jp.prune(jp.magnitude, jp.uniform, schedule)
    with pytest.raises(ValueError, match=f"is, at step {at:,}, {bad:g}"):
        jp.dpf(schedule)
    if bad != 1:
        with pytest.raises(ValueError, match=f"drop fraction is, at step {at:,}, {bad:g}"):
            jp.rigl(jax.random.key(0), 0.5, schedule)


def test_a_schedule_that_branches_in_python():
    check_schedule(lambda step: 0.5 if step > 100 else 0.0)
    with pytest.raises(ValueError, match="ends at 2"):
        check_schedule(lambda step: 2.0 if step > 100 else 0.0)


@pytest.mark.parametrize("bad", quick([np.nan, np.inf, -np.inf, 1.0, 2.0, -0.1]))
def test_an_unseen_value_that_is_no_sparsity_prunes_nothing(bad):
    """What is traced, as in a sweep under vmap, can't be refused."""

    def run(bad):
        schedule = lambda step: jnp.where(step == 1, bad, 0.5 + 0.1 * step)
        transform = jp.prune(jp.magnitude, jp.uniform, schedule)
        state, kept = transform.init(PARAMS), []
        for step in range(3):
            state = transform.update(
                state, PARAMS, step=jnp.int32(step), grads=None, opt_state=None
            )
            kept.append(jp.sparsity(state.masks))
        return jnp.stack(kept)

    np.testing.assert_allclose(jax.jit(run)(bad), [0.5, 0.5, 0.7], atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(np.array([bad]))[0], [0.5, 0.5, 0.7], 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, -1.0])
def test_an_unseen_fraction_that_is_none_drops_nothing(bad):
    def run(bad):
        transform = jp.rigl(jax.random.key(0), 0.5, lambda step: bad + 0.0 * step)
        state = transform.init(PARAMS)
        new = transform.update(state, PARAMS, step=0, grads=PARAMS, opt_state=None)
        return jp.overlap(state.masks, new.masks), jp.sparsity(new.masks)

    assert jax.jit(run)(bad) == (1.0, 0.5)
    assert jax.jit(lambda x: fraction_at(lambda step: x, 0))(1.0) == 1.0


@pytest.mark.parametrize("bad", quick([np.nan, np.inf, -np.inf, 1.0, 2.0, -0.1]))
@pytest.mark.parametrize("allocation", quick([jp.uniform, jp.erk, jp.global_threshold]))
def test_select_of_an_unseen_sparsity_that_is_none_prunes_nothing(bad, allocation):
    scores = jp.magnitude({**PARAMS, "b": PARAMS["kernel"]})
    masks = jax.jit(lambda s: jp.select(scores, allocation, s))(bad)
    assert float(jp.sparsity(masks)) == 0
