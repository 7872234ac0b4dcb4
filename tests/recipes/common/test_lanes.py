"""Lanes side by side are each alone; phases, forks and rewound networks are data of one program."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes.common import data, lanes, models
from recipes.common.lanes import Lane
from recipes.common.models import MLP

STEPS, BATCH = 6, 32
MODULE = MLP((16,), 10)


def make(optimizer, module=MODULE, chunk_steps=3):
    by_lane = lambda lane: jp.sparsify(lanes.by_rates(optimizer, lane), jp.fixed(lanes.keep_all))
    digits = data.load("digits", train_examples=128)
    return lanes.program(module, by_lane, digits.train, BATCH, chunk_steps)


@pytest.fixture(scope="module")
def program():
    """Of plain SGD, whose state is a count: weights and masks are all there is to a network."""
    return make(optax.sgd)


def networks(program, count=2, sparsity=0.5):
    keys = lanes.seed_keys(0, count)
    dense = lanes.initial(program, keys)
    masks = jax.vmap(lambda p: jp.select(jp.magnitude(jp.kernels(p)), jp.uniform, sparsity))(
        dense.params
    )
    return keys, dense._replace(masks=masks)


def lane_of(keys, *schedules, decay=0.0):
    rates = jnp.stack([lanes.table(schedule, STEPS) for schedule in schedules])
    return Lane(keys, rates, jnp.broadcast_to(jnp.asarray(decay), (len(schedules),)))


def constant(rate):
    return lambda count: rate + 0.0 * count


def nothing(step, state):
    pass


def trained(program, network, lane, steps=STEPS, first=0):
    state = lanes.begin(program, network, lane)
    return lanes.train(program, state, lane, steps, nothing, first=first)


class AtOnce:
    """A journal that is never interrupted."""

    def once(self, name, steps, state, train, words):
        return train(state, 0, nothing)


def assert_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), a, b)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- stacks ---------------------------------------------------------------------------------------


def test_rates_are_a_table_then_zeros():
    table = lanes.table(optax.linear_schedule(1.0, 0.0, 4), 3, length=5)
    np.testing.assert_allclose(table, [1.0, 0.75, 0.5, 0, 0])


def test_stacks_by_hand():
    a, b = {"x": jnp.array([1, 2])}, {"x": jnp.array([3])}
    assert lanes.repeat(a, 2)["x"].tolist() == [1, 1, 2, 2]
    assert lanes.tile(a, 2)["x"].tolist() == [1, 2, 1, 2]
    assert lanes.join(a, b)["x"].tolist() == [1, 2, 3]
    assert lanes.split(lanes.tile(a, 2), 2, 2)["x"].tolist() == [[1, 2], [1, 2]]
    assert lanes.part(a, 1)["x"].tolist() == [2] and lanes.part(a, 0, 1)["x"].tolist() == [1]
    assert lanes.lane_of(a, 1)["x"] == 2
    keys = jax.random.split(jax.random.key(0), 2)  # keys are arrays as others are
    assert (lanes.join(lanes.tile(keys, 2), lanes.repeat(keys, 2))[5] == keys[0]).all()


# --- one program ----------------------------------------------------------------------------------


@pytest.mark.full
def test_lanes_are_what_each_is_alone_and_share_a_program():
    program = make(optax.sgd)
    keys, network = networks(program)
    decay = jnp.array([0.0, 0.1])
    lane = lane_of(keys, constant(0.1), lambda count: 0.2 - 0.03 * count, decay=decay)
    state = trained(program, network, lane)
    turned = lambda stack: jax.tree.map(lambda x: x[::-1], stack)
    again = trained(program, turned(network), turned(lane))  # other masks, rates and orders
    assert len(program.compiled) == 1
    assert_close(turned(again.params), state.params)
    for i in range(2):
        alone = trained(program, *lanes.part((network, lane), i, i + 1))
        assert_close(alone.params, lanes.part(state.params, i, i + 1))


@pytest.mark.full
def test_what_is_pruned_stays_zero_and_the_rest_learns(program):
    keys, network = networks(program)
    after = trained(program, network, lane_of(keys, *[constant(0.1)] * 2)).network
    assert_equal(after.masks, network.masks)
    for name in ("Dense_0", "Dense_1"):
        kernel, mask = after.params[name]["kernel"], network.masks[name]["kernel"]
        assert not kernel[~mask].any()
        assert (kernel != network.params[name]["kernel"])[mask].mean() > 0.5


def test_without_a_rate_nothing_moves(program):
    """An arm that trains for fewer steps than others rests in the end."""
    keys, network = networks(program)
    short = lanes.alike(keys, lanes.table(constant(0.1), 3, STEPS), 0.1)
    three = trained(program, network, short, steps=3).params
    assert_equal(trained(program, network, short).params, three)


def test_past_the_end_of_its_table_a_rate_is_zero():
    lane = Lane(jax.random.key(0), jnp.array([0.5]), jnp.float32(0.0))
    tx = lanes.by_rates(optax.sgd, lane)
    params, state, moved = {"w": jnp.ones(1)}, tx.init({"w": jnp.ones(1)}), []
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        moved.append(float(updates["w"][0]))
    assert moved == [-0.5, 0]


def test_what_a_call_tells_is_the_mean_over_its_steps():
    step = lambda state, images, labels, lane: (state, {"seen": images.mean()})
    train = data.Split(jnp.array([1.0, 2.0, 3.0, 6.0]), jnp.zeros(4, jnp.int32))
    order = jnp.array([[[0, 1], [0, 0]], [[2, 3], [1, 1]]])  # (steps, lanes, batch)
    _, told = lanes.chunk(step)(jnp.zeros(2), train, order, jnp.zeros(2))
    assert told["seen"].tolist() == [3, 1.5]


@pytest.mark.full
def test_weight_decay_is_coupled(program):
    """One step by hand: the gradient, and the weights times the decay, both times the rate."""
    keys, network = networks(program, count=1)
    after = trained(program, network, Lane(keys, jnp.full((1, 1), 0.1), jnp.array([0.5])), steps=1)
    start = jp.apply_masks(*(lanes.lane_of(t, 0) for t in (network.params, network.masks)))
    (indices,) = next(data.order(keys, 128, BATCH))
    batch = program.data.images[indices], program.data.labels[indices]
    loss = models.classification(program.module)
    grads = jax.grad(lambda p: loss(p, {}, *batch)[0])(start)
    expected = jax.tree.map(lambda w, g: w - 0.1 * (g + 0.5 * w), start, grads)
    expected = jp.apply_masks(expected, lanes.lane_of(network.masks, 0))
    assert_close(lanes.lane_of(after.params, 0), expected)


def test_a_loss_and_where_its_gradient_is_taken(program):
    """It knows the step and the lane; what is passed straight through reaches all params."""

    def loss(params, state, images, labels, lane):
        count = state.opt_state.step.astype(jnp.float32)
        total = sum(jnp.sum(w) for w in jax.tree.leaves(params))
        return total * (1 + count) * lane.decay, (jnp.float32(0), state.batch_stats)

    twice = lambda state: jax.tree.map(lambda w: 2 * w, state.params)
    keys = lanes.seed_keys(0, 2)
    lane = Lane(keys, jnp.ones((2, STEPS)), jnp.array([0.0, 0.25]))
    plain = lambda lane: jp.sparsify(optax.sgd(1.0), jp.fixed(lanes.keep_all))
    digits = data.load("digits", train_examples=128)
    own = lanes.program(program.module, plain, digits.train, BATCH, 2, loss, twice)
    before = lanes.initial(own, keys)
    after = trained(own, before, lane, steps=2)
    moved = jax.tree.map(lambda a, b: a - b, before.params, after.params)
    assert not moved["Dense_0"]["kernel"][0].any()
    np.testing.assert_allclose(moved["Dense_0"]["kernel"][1], 0.25 * (1 + 2), rtol=1e-5)


@pytest.mark.full
def test_lanes_on_four_devices_say_nothing_to_each_other(monkeypatch):
    keys = lanes.seed_keys(0, 4)
    results, texts = [], []
    for devices in (1, 4):
        monkeypatch.setattr(lanes, "devices_for", lambda count, n=devices: n)
        program = make(optax.adam)
        _, network = networks(program, count=4)
        after = trained(program, network, lane_of(keys, *[constant(0.01)] * 4))
        (compiled,) = program.compiled.values()
        texts.append(compiled.as_text())
        results.append(after.params)
        assert {len(x.devices()) for x in jax.tree.leaves(after)} == {1}
    assert "num_partitions=4" in texts[1] and "num_partitions=4" not in texts[0]
    assert not re.search("all-reduce|all-gather|all-to-all|collective-permute", texts[1])
    assert_close(*results)


# --- a state --------------------------------------------------------------------------------------


def test_training_begins_with_a_fresh_optimizer_and_leaves_the_networks_alone():
    program = make(optax.adam)
    keys, network = networks(program)
    lane = lane_of(keys, *[constant(0.1)] * 2)
    state = lanes.begin(program, network, lane)
    for name in ("mu", "nu"):
        for leaf in jax.tree.leaves(optax.tree.get(state.opt_state, name)):
            assert not leaf.any()
    assert_equal(state.params, jp.apply_masks(network.params, network.masks))
    assert not state.opt_state.step.any()
    kept = jax.tree.map(np.asarray, network)
    lanes.train(program, state, lane, 1, nothing)  # donates its own copy
    assert_equal(network, kept)


def test_a_rewound_network_sees_again_what_it_saw(program):
    """From the weights of step 3, `first=3`, it is the network that trained on."""
    keys, network = networks(program)
    lane = lane_of(keys, *[constant(0.1)] * 2)
    early = lanes.copied(trained(program, network, lane, steps=3).network)
    back = trained(program, early, lane, steps=3, first=3)
    whole = trained(program, network, lane)
    assert_close(back.params, whole.params)
    again = lanes.trained(AtOnce(), "again", program, early, lane, 3, first=3)
    assert_equal(again.params, back.params)
    other = trained(program, early, lane, steps=3)
    kernel = lambda state: np.asarray(state.params["Dense_0"]["kernel"])
    assert np.abs(kernel(other) - kernel(whole)).max() > 1e-4


def test_steps_in_two_calls_are_the_steps(program):
    keys, network = networks(program)
    lane, seen = lane_of(keys, *[constant(0.1)] * 2), []
    state = lanes.begin(program, network, lane)
    for start, stop in ((0, 3), (3, 6)):
        see = lambda step, state: seen.append(step)
        state = lanes.train(program, state, lane, stop, see, start)
    assert seen == [3, 6]
    assert_close(state.params, trained(program, network, lane).params)


@pytest.mark.full
def test_two_programs_in_turns_are_each_alone(program):
    other = make(optax.adam, MLP((8,), 10))
    alone, runs = [], []
    for own in (program, other):
        keys, network = networks(own)
        lane = lane_of(keys, *[constant(0.01)] * 2)
        alone.append(trained(own, network, lane).params)
        runs.append(lanes.advance(own, lanes.begin(own, network, lane), lane, STEPS))
    points = list(zip(*runs, strict=True))
    assert [pair[0].step for pair in points] == [3, 6]
    for point, params in zip(points[-1], alone, strict=True):
        assert_equal(point.state.params, params)
        assert point.metrics["loss"].shape == (2,)


# --- phases ---------------------------------------------------------------------------------------


class Kept:
    """A journal in memory."""

    def __init__(self, settled=0, state=None):
        self.settled, self.state, self.records = settled, state, []

    def last(self, like):
        return self.state

    def log(self, record):
        self.records.append(record)

    def settle(self, state):
        self.settled, self.state = self.settled + 1, state


def test_phases_are_a_fold_that_goes_on():
    def add(i, state):
        return [*state, i], {"phase": i} if i else None  # nothing to tell of the first

    kept = Kept()
    assert lanes.phases(kept, 4, ["first"], add) == ["first", 0, 1, 2, 3]
    assert kept.records == [{"phase": 1}, {"phase": 2}, {"phase": 3}] and kept.settled == 4
    later = Kept(2, ["first", 0, 1])
    assert lanes.phases(later, 4, ["first"], add) == ["first", 0, 1, 2, 3]
    assert later.records == [{"phase": 2}, {"phase": 3}]
    assert lanes.phases(later, 4, ["first"], add) == ["first", 0, 1, 2, 3]  # nothing is left


def test_the_state_of_phases_may_be_an_array():
    add = lambda i, state: (state + i, None)
    np.testing.assert_array_equal(lanes.phases(Kept(2, np.zeros(3)), 4, np.ones(3), add), [5, 5, 5])
