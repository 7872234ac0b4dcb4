"""AP: the worked prune, its counts, and rewound phases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

EARLY = {"w": jnp.array([0.5, -0.3, 0.2, -0.6, -0.1, 0.4, -0.45, 0.05, 0.7, -0.25])}
LATE = {"w": jnp.array([0.9, -0.35, 0.15, -0.9, -0.12, 0.5, -0.44, 0.02, 0.75, -0.6])}


def everything(params):
    return params


def pruned(sparsity, share, late=LATE, early=EARLY):
    """Which weights one phase prunes."""
    rule = jp.tickets.ap(lambda phase: sparsity, share, prunable=everything)
    phase = jp.tickets.next_phase(rule, rule.init(late), late, 0, rewind_to=early)
    return np.flatnonzero(~np.asarray(phase.masks["w"])).tolist()


def test_the_worked_prune():
    assert pruned(0.4, 0.5) == [1, 4, 6, 7]  # {4, 7} by magnitude; then of 1, 3, 6, 9 {1, 6}
    assert pruned(0.4, 0.0) == [1, 2, 4, 7]
    assert pruned(0.4, 1.0) == [1, 3, 4, 6]  # movements .05, .3, .02, .01, .35 of 1, 3, 4, 6, 9


def test_of_two_that_end_alike_the_one_that_moved_less_goes():
    late, early = jnp.array([-0.5, -0.4, 0.3]), jnp.array([-0.5, -0.1, 0.3])
    assert pruned(1 / 3, 1.0, {"w": late}, {"w": early}) == [0]


def test_where_negative_weights_run_out_the_smallest_others_go():
    late = {"w": jnp.array([0.4, -0.5, 0.3, 0.2])}
    assert pruned(0.5, 1.0, late, jax.tree.map(jnp.zeros_like, late)) == [1, 3]


def test_phases_prune_as_many_as_the_schedule_says_and_only_more():
    params = {"a": jax.random.normal(jax.random.key(0), (10, 20)), "bias": jnp.ones(20)}
    moved = jax.tree.map(lambda w: 1.1 * w + 0.01, params)
    rule = jp.tickets.ap(jp.tickets.schedule(0.9, 4))

    def train(phase):
        return jp.apply_masks(moved, phase.masks), phase.masks["a"]

    _, _, masks = jp.tickets.iterative(train, moved, rule, 4, rewind_to=params)
    kept = masks.reshape(4, -1).sum(1).tolist()
    assert kept == [200 - round(s * 200) for s in jp.tickets.sparsities(0.9, 4)]
    assert not (masks[1:] & ~masks[:-1]).any()
    by_magnitude = jp.prune(jp.magnitude, jp.global_threshold, jp.tickets.schedule(0.9, 4))
    _, _, plain = jp.tickets.iterative(train, moved, by_magnitude, 4, rewind_to=params)
    negative = (moved["a"] < 0)[None]
    assert (masks & negative).sum() < (plain & negative).sum()


# --- bad input -----------------------------------------------------------------------------------


def test_bad_input():
    with pytest.raises(TypeError, match=r"function of the phase, such as jp\.tickets\.schedule"):
        jp.tickets.ap(0.9)
    schedule = jp.tickets.schedule(0.9, 3)
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got 1\.5"):
        jp.tickets.ap(schedule, 1.5)
    rule = jp.tickets.ap(schedule, prunable=everything)
    with pytest.raises(ValueError, match=r"since the rewind step, and needs the weights there"):
        jp.tickets.next_phase(rule, rule.init(LATE), LATE, 0)
    with pytest.raises(ValueError, match=r"activating: rewind_to"):
        jp.tickets.activating(LATE, rewind_to={"w": jnp.ones(3)})
