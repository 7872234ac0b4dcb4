"""Lanes side by side are each alone, and all phases run one compiled program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes.common import data, phases, training
from recipes.common.models import MLP
from recipes.common.phases import Lane

STEPS, BATCH = 6, 32


@pytest.fixture(scope="module")
def program():
    """Of plain SGD, whose state is a count: weights and masks are all there is to a network."""
    digits = data.load("digits", train_examples=128)
    return phases.phases(MLP((16,), 10), optax.sgd, digits.train, BATCH, chunk_steps=3)


def networks(program, lanes=2, sparsity=0.5):
    keys = training.seed_keys(0, lanes)
    variables = training.init_variables(program.arm.module, keys, program.train.images[:1])
    masks = jax.vmap(lambda p: jp.select(jp.magnitude(jp.kernels(p)), jp.uniform, sparsity))(
        variables["params"]
    )
    return keys, variables["params"], masks


def lanes_of(*schedules, decay=0.0):
    table = jnp.stack([phases.rates(schedule, STEPS) for schedule in schedules])
    return Lane(table, jnp.broadcast_to(jnp.asarray(decay), (len(schedules),)))


def constant(rate):
    return lambda count: rate + 0.0 * count


def trained(program, params, masks, lanes, keys, steps=STEPS, first=0):
    state = phases.begin(program, params, {}, masks, lanes)
    return phases.advance(program, state, lanes, keys, steps, lambda step, state: None, first=first)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def test_rates_are_a_table_then_zeros():
    table = phases.rates(optax.linear_schedule(1.0, 0.0, 4), 3, length=5)
    np.testing.assert_allclose(table, [1.0, 0.75, 0.5, 0, 0])


def test_lanes_are_what_each_is_alone_and_share_a_program(program):
    keys, params, masks = networks(program)
    program.chunk.clear_cache()
    lanes = lanes_of(constant(0.1), lambda count: 0.2 - 0.03 * count, decay=jnp.array([0.0, 0.1]))
    state = trained(program, params, masks, lanes, keys)
    swapped = jax.tree.map(lambda x: x[::-1], (params, masks, lanes))
    again = trained(program, *swapped, keys[::-1])  # a phase with other masks, rates and orders
    assert program.chunk._cache_size() == 1
    assert_close(jax.tree.map(lambda x: x[::-1], again.params), state.params)
    for i in range(2):
        one = slice(i, i + 1)
        own = jax.tree.map(lambda x, one=one: x[one], (params, masks, lanes))
        alone = trained(program, *own, keys[one])
        assert_close(alone.params, jax.tree.map(lambda x, one=one: x[one], state.params))


def test_what_is_pruned_stays_zero_and_the_rest_learns(program):
    keys, params, masks = networks(program)
    state = trained(program, params, masks, lanes_of(*[constant(0.1)] * 2), keys)
    jax.tree.map(np.testing.assert_array_equal, jp.get_masks(state.opt_state), masks)
    for name in ("Dense_0", "Dense_1"):
        kernel, mask = state.params[name]["kernel"], masks[name]["kernel"]
        assert not kernel[~mask].any()
        assert (kernel != params[name]["kernel"])[mask].mean() > 0.5


def test_without_a_rate_nothing_moves(program):
    """An arm that trains for fewer steps than others rests in the end."""
    keys, params, masks = networks(program)
    short = Lane(phases.rates(constant(0.1), 3, STEPS)[None].repeat(2, 0), jnp.full(2, 0.1))
    three = trained(program, params, masks, short, keys, steps=3)
    held = jax.tree.map(np.asarray, three.params)
    jax.tree.map(
        np.testing.assert_array_equal, trained(program, params, masks, short, keys).params, held
    )


def test_a_rewound_network_sees_again_what_it_saw(program):
    """From the weights of step 3, `first=3`, it is the network that trained on."""
    keys, params, masks = networks(program)
    lanes = lanes_of(*[constant(0.1)] * 2)
    early = trained(program, params, masks, lanes, keys, steps=3).params
    early = jax.tree.map(jnp.copy, early)
    back = trained(program, early, masks, lanes, keys, steps=3, first=3)
    whole = trained(program, params, masks, lanes, keys)
    assert_close(back.params, whole.params)
    other = trained(program, early, masks, lanes, keys, steps=3)
    kernel = lambda state: np.asarray(state.params["Dense_0"]["kernel"])
    assert np.abs(kernel(other) - kernel(whole)).max() > 1e-4


def test_a_phase_in_two_calls_is_the_phase(program):
    keys, params, masks = networks(program)
    lanes, seen = lanes_of(*[constant(0.1)] * 2), []
    state = phases.begin(program, params, {}, masks, lanes)
    for start, stop in ((0, 3), (3, 6)):
        see = lambda step, state: seen.append(step)
        state = phases.advance(program, state, lanes, keys, stop, see, start)
    assert seen == [3, 6]
    assert_close(state.params, trained(program, params, masks, lanes, keys).params)


def test_weight_decay_is_coupled(program):
    """One step by hand: the gradient, and the weights times the decay, both times the rate."""
    keys, params, masks = networks(program, lanes=1)
    rates = Lane(jnp.full((1, 1), 0.1), jnp.array([0.5]))
    after = trained(program, params, masks, rates, keys, steps=1).params
    start = jp.apply_masks(*(jax.tree.map(lambda x: x[0], t) for t in (params, masks)))
    (indices,) = next(training.data_order(keys, 128, BATCH))
    batch = program.train.images[indices], program.train.labels[indices]
    loss = training.classification(program.arm.module)
    grads = jax.grad(lambda p: loss(p, {}, *batch)[0])(start)
    expected = jax.tree.map(lambda w, g: w - 0.1 * (g + 0.5 * w), start, grads)
    expected = jp.apply_masks(expected, jax.tree.map(lambda m: m[0], masks))
    assert_close(jax.tree.map(lambda x: x[0], after), expected)


def test_a_phase_begins_with_a_fresh_optimizer():
    digits = data.load("digits", train_examples=128)
    program = phases.phases(MLP((8,), 10), optax.adam, digits.train, BATCH, chunk_steps=3)
    keys, params, masks = networks(program)
    lanes = lanes_of(*[constant(0.1)] * 2)
    state = phases.begin(program, params, {}, masks, lanes)
    for name in ("mu", "nu"):
        for leaf in jax.tree.leaves(optax.tree.get(state.opt_state, name)):
            assert not leaf.any()
    jax.tree.map(np.testing.assert_array_equal, state.params, jp.apply_masks(params, masks))
    assert not state.opt_state.step.any()
    kept = jax.tree.map(np.asarray, params)
    phases.advance(program, state, lanes, keys, 1, lambda step, state: None)  # donates its own copy
    jax.tree.map(np.testing.assert_array_equal, params, kept)
