"""Rates of retraining: the published rules, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

STEPS = 100


def milestones():
    """Warmed up over 10 steps to 1, then a tenth from step 50 and a hundredth from step 80."""
    drops = optax.piecewise_constant_schedule(1.0, {40: 0.1, 70: 0.1})
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, 10), drops], [10])


def at(schedule, *steps):
    return [round(float(schedule(step)), 4) for step in steps]


# --- by hand -------------------------------------------------------------------------------------


def test_llr():
    assert at(jp.tickets.llr(0.1, 100), 0, 5, 10, 55, 100) == [0, 0.05, 0.1, 0.05, 0]


def test_clr():
    to_zero = lambda step: jnp.where(step < 99, 0.1, 0.0)
    found = at(jp.tickets.clr(to_zero, 100, 100), 0, 5, 10, 55, 77, 100)
    assert found == [0, 0.05, 0.1, 0.05, 0.0153, 0]


def test_clr_ends_at_the_lowest_rate_of_the_original_training():
    """Not at zero, and not at that of its warm-up."""
    original = optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 61, 0.02)
    assert at(jp.tickets.clr(original, 62, 100), 10, 55, 100) == [0.1, 0.06, 0.02]
    assert at(jp.tickets.clr(milestones(), STEPS, 100), 10, 100) == [1.0, 0.01]


def test_allr():
    before = {"kernel": jnp.array([3.0, -2.0, 1.0]), "bias": jnp.array([0.5, -0.25])}
    after = {"kernel": before["kernel"], "bias": jnp.zeros(2)}
    schedule = jp.tickets.allr(0.1, 5, before, after, pruned=0.4, steps=100, warmup=0.0)
    assert at(schedule, 0) == [0.0234]  # 0.1 * 0.1478 / sqrt(0.4)


@pytest.mark.parametrize(
    ("scale", "retrain_steps", "start"),
    [(0.0, 5, 0.005), (0.0, 30, 0.03), (0.0, 300, 0.1), (1.0, 5, 0.1)],
)
def test_allr_is_clipped(scale, retrain_steps, start):
    """By the budget from below, by the highest rate from above."""
    before = {"kernel": jnp.array([3.0, -2.0])}
    after = {"kernel": (1 - scale) * before["kernel"]}
    schedule = jp.tickets.allr(0.1, retrain_steps, before, after, pruned=0.5, steps=100, warmup=0.0)
    assert at(schedule, 0) == [pytest.approx(start)]


def test_allr_of_nothing_is_finite():
    zero = {"kernel": jnp.zeros(2)}
    assert at(jp.tickets.allr(0.1, 10, zero, zero, 0.0, 100, warmup=0.0), 0) == [0.01]


def test_lrr_replays_the_last_rates():
    schedule, original = jp.tickets.lrr(milestones(), STEPS, 30), milestones()
    np.testing.assert_array_equal(
        [schedule(step) for step in range(30)], [original(step) for step in range(70, 100)]
    )
    assert schedule(1000) == original(99)  # what comes after is the last


def test_ft_is_the_lowest_rate_and_warm_up_is_none():
    assert at(jp.tickets.ft(milestones(), STEPS), 0, 99) == [0.01, 0.01]
    warm = optax.linear_schedule(0.0, 1.0, 10)
    assert at(jp.tickets.ft(warm, STEPS), 0) == [1]


def test_slr_is_the_original_in_fewer_steps():
    """Half as long, its warm-up at the highest rate, and warmed up anew over 5 of 50 steps."""
    schedule = jp.tickets.slr(milestones(), STEPS, 50)
    half = 0.5 * (1 - np.cos(np.pi / 5))
    assert at(schedule, 0, 1, 5) == [0, round(half, 4), 1]
    original = milestones()
    for step in range(5, 50):
        there = (step - 5) * 100 // 45
        wanted = 1.0 if there < 10 else float(original(there))
        assert float(schedule(step)) == pytest.approx(wanted), step


@pytest.mark.parametrize("steps", [100, 12_345])
def test_slr_of_the_same_length_is_the_original(steps):
    """Without a warm-up; in float32 one of five steps of 100 read the rate of the step before."""
    original = lambda count: 1.0 - count / (2 * steps)
    schedule = jp.tickets.slr(original, steps, steps, warmup=0.0)
    counts = jnp.arange(steps)
    np.testing.assert_allclose(schedule(counts), jax.vmap(original)(counts), rtol=1e-6)


# --- laws ----------------------------------------------------------------------------------------


def restarts(length):
    trained = {"kernel": jnp.array([3.0, -2.0, 1.0])}
    left = {"kernel": jnp.array([3.0, -2.0, 0.0])}
    return {
        "slr": jp.tickets.slr(milestones(), STEPS, length),
        "clr": jp.tickets.clr(milestones(), STEPS, length),
        "llr": jp.tickets.llr(0.1, length),
        "allr": jp.tickets.allr(0.1, length, trained, left, 1 / 3, STEPS),
    }


def test_lengths_and_rates_may_be_traced():
    """Children of a soup with lengths of their own are lanes of one program."""

    @jax.jit
    @jax.vmap
    def traced(length):
        return {name: jax.vmap(f)(jnp.arange(60)) for name, f in restarts(length).items()}

    lengths = [20, 45]
    for i, length in enumerate(lengths):
        for name, schedule in restarts(length).items():
            rates = traced(jnp.asarray(lengths))[name][i]
            np.testing.assert_allclose(rates, schedule(jnp.arange(60)), rtol=1e-5, atol=1e-7)
    peaks = jnp.array([0.1, 0.2])
    halves = jax.vmap(lambda peak: jp.tickets.llr(peak, 100)(55))(peaks)
    np.testing.assert_allclose(halves, peaks / 2)


def test_ft_and_lrr_under_jit():
    both = lambda: (jp.tickets.ft(milestones(), STEPS), jp.tickets.lrr(milestones(), STEPS, 30))
    rates = jax.jit(lambda count: [schedule(count) for schedule in both()])(5)
    np.testing.assert_allclose(rates, [0.01, 0.1], rtol=1e-6)


def test_they_are_schedules_for_optax():
    params = jnp.ones(3)
    for schedule in (
        *restarts(30).values(),
        jp.tickets.ft(milestones(), STEPS),
        jp.tickets.lrr(milestones(), 100, 30),
    ):
        tx = optax.sgd(schedule)
        updates, _ = tx.update(params, tx.init(params), params)
        assert updates.dtype == jnp.float32 and updates.shape == (3,)


# --- bad input -----------------------------------------------------------------------------------


def test_fine_tuning_after_a_decay_to_zero_learns_nothing():
    with pytest.raises(ValueError, match="the lowest rate of the original training is 0: nothing"):
        jp.tickets.ft(lambda count: 1.0 - count / 99, STEPS)


def test_more_rates_than_there_were():
    with pytest.raises(ValueError, match="can't replay the last 101 of 100 rates"):
        jp.tickets.lrr(milestones(), STEPS, 101)


@pytest.mark.parametrize("steps", [0, 2.5, True])
def test_a_training_has_whole_steps(steps):
    for make in (
        jp.tickets.ft,
        lambda s, n: jp.tickets.lrr(s, n, 5),
        lambda s, n: jp.tickets.slr(s, n, 5),
    ):
        with pytest.raises(ValueError, match="the steps of a training are an int of at least 1"):
            make(milestones(), steps)


def test_no_steps_of_retraining():
    with pytest.raises(ValueError, match="llr: retraining needs at least one step; got 0"):
        jp.tickets.llr(0.1, 0)


@pytest.mark.parametrize("warmup", [1.0, -0.1, 10])
def test_a_warm_up_is_a_fraction(warmup):
    with pytest.raises(ValueError, match=r"clr: warmup is a fraction of the steps, in \[0, 1\)"):
        jp.tickets.clr(milestones(), 100, 100, warmup=warmup)
