"""Training many seeds at once is what training each alone would be."""

import re
from itertools import islice

import jax
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes.common import arms, data, lanes, measures, models
from recipes.common.arms import Arm, Weights
from recipes.common.models import MLP, model


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_examples=256)


def pruned_adam():
    schedule = optax.polynomial_schedule(0.0, 0.8, 3, transition_steps=6, transition_begin=2)
    gmp = jp.prune(jp.magnitude, jp.global_threshold, schedule)
    return jp.sparsify(optax.adam(1e-2), jp.every(2, gmp, start=2, stop=8))


def run(module, tx, digits, keys, chunk_steps=5, steps=12):
    arm = Arm(module, tx)
    program = arms.program_of(arm, digits.train, 32, chunk_steps)
    state = arms.begin(arm, keys, digits.train.images)
    points = lanes.advance(program, state, arms.seeds_of(keys), steps)
    # a yielded state is donated to the next chunk: only the last one is still there
    return [(p.step, p.metrics["loss"], p.metrics["accuracy"], p.state) for p in points]


@pytest.mark.full
def test_vmapped_seeds_equal_separate_runs(digits):
    module, tx = MLP((16,), 10), pruned_adam()
    together = run(module, tx, digits, lanes.seed_keys(3, 2))
    assert [point[0] for point in together] == [5, 10, 12]
    for i in range(2):
        alone = run(module, tx, digits, lanes.seed_keys(3 + i, 1))
        for (_, loss, accuracy, _), (_, one_loss, one_accuracy, _) in zip(
            together, alone, strict=True
        ):
            np.testing.assert_allclose(loss[i : i + 1], one_loss, rtol=1e-4)
            np.testing.assert_allclose(accuracy[i : i + 1], one_accuracy, atol=0.05)
        masks, one = (jp.get_masks(points[-1][3].opt_state) for points in (together, alone))
        same = jax.tree.map(lambda a, b, i=i: np.mean(a[i] == b[0]), masks, one)
        assert min(jax.tree.leaves(same)) > 0.99


@pytest.mark.full
def test_seeds_on_four_devices_say_nothing_to_each_other(digits):
    arm = Arm(MLP((16,), 10), lambda key: pruned_adam(), Weights.SPARSE)
    keys, order = lanes.seed_keys(0, 4), np.zeros((3, 4, 8), np.int32)
    step = arms.program_of(arm, digits.train, 8, 3).step
    state, own = lanes.spread((arms.begin(arm, keys, digits.train.images), arms.seeds_of(keys)), 4)
    program = lanes.chunk(step, 4).lower(state, digits.train, order, own)
    assert "num_partitions=4" in (text := program.compile().as_text())
    assert not re.search("all-reduce|all-gather|all-to-all|collective-permute", text)


@pytest.mark.full
def test_it_learns_and_the_masks_hold(digits):
    points = run(
        MLP((32,), 10), pruned_adam(), digits, lanes.seed_keys(0, 2), chunk_steps=20, steps=80
    )
    state = points[-1][3]
    assert points[-1][1].mean() < 0.5 * points[0][1].mean()
    masks = jp.get_masks(state.opt_state)
    np.testing.assert_allclose(jax.vmap(jp.sparsity)(masks), 0.8, atol=1e-3)
    for name in ("Dense_0", "Dense_1"):
        pruned = state.params[name]["kernel"][~masks[name]["kernel"]]
        assert not pruned.any()


@pytest.mark.full
def test_seeds_start_differently_and_arms_alike(digits):
    keys = lanes.seed_keys(0, 2)
    made = [
        Arm(MLP((4,), 10), optax.adam(1e-3)),
        Arm(MLP((4,), 10), lambda key: pruned_adam(), Weights.SPARSE),
    ]
    dense, sparse = (arms.begin(arm, keys, digits.train.images) for arm in made)
    jax.tree.map(np.testing.assert_array_equal, dense.params, sparse.params)
    kernel = dense.params["Dense_0"]["kernel"]
    assert (kernel[0] != kernel[1]).any()


def test_data_order_is_a_permutation_per_epoch_and_seed():
    keys = lanes.seed_keys(0, 2)
    steps = list(islice(data.order(keys, examples=11, batch_size=3), 7))
    epochs = np.stack(steps[:6]).reshape(2, 3, 2, 3).swapaxes(1, 2).reshape(2, 2, 9)
    for epoch in epochs:
        for order in epoch:
            assert len(set(order.tolist())) == 9
    assert (epochs[0, 0] != epochs[0, 1]).any()
    assert (epochs[0, 0] != epochs[1, 0]).any()
    for start, wanted in enumerate(steps):  # within an epoch too
        later = next(data.order(keys, examples=11, batch_size=3, start=start))
        np.testing.assert_array_equal(later, wanted)


class _ShowsItsKey:
    """What `models.init` asks of a network; its weights are the key that they are drawn with."""

    def init(self, key, image):
        return {"params": jax.random.key_data(key)}


def test_weights_data_and_optimizers_have_keys_of_their_own(monkeypatch):
    """Masks at random, drawn with the key of the weights, would say something of the weights."""
    keys = lanes.seed_keys(0, 3)
    weights = models.init(_ShowsItsKey(), keys, np.zeros((1, 2)))["params"]
    orders = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)  # of `data.order`
    order = jax.vmap(lambda key: jax.random.permutation(jax.random.fold_in(key, 0), 9))(orders)
    np.testing.assert_array_equal(next(data.order(keys, 9, 9)), np.asarray(order))
    every = [weights, *map(jax.random.key_data, (keys, orders, arms.seeds_of(keys).own))]
    assert len(np.unique(np.concatenate(every), axis=0)) == 12


@pytest.mark.full
def test_evaluate_counts_every_example_once(digits):
    module = MLP((8,), 10)
    arm = Arm(module, optax.sgd(0.1))
    state = arms.begin(arm, lanes.seed_keys(0, 3), digits.train.images)
    accuracy = measures.accuracy(module, digits.test, 50)({"params": state.params})
    for i in range(3):
        params = jax.tree.map(lambda x, i=i: x[i], state.params)
        logits = module.apply({"params": params}, digits.test.images)
        right = (np.argmax(logits, -1) == digits.test.labels).sum()
        np.testing.assert_allclose(accuracy[i], right / 360)


@pytest.mark.full
def test_running_statistics_are_trained_per_seed(digits):
    module, keys = model("conv", 10, "batch"), lanes.seed_keys(0, 2)
    (_, _, _, state), *_ = run(module, optax.adam(1e-3), digits, keys, chunk_steps=1, steps=1)
    mean = state.batch_stats["BatchNorm_0"]["mean"]
    assert mean.shape == (2, 32)
    assert (mean[0] != mean[1]).any()


def test_extra_arguments_reach_the_optimizer(digits):
    seen = []

    def update(updates, state, params=None, **extra):
        seen.append(set(extra))
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    run(MLP((4,), 10), spy, digits, lanes.seed_keys(0, 1), chunk_steps=1, steps=1)
    assert seen[0] == {"value"}


def at_random(sparsity=0.75):
    optimizer = lambda key: jp.sparsify(optax.adam(1e-2), jp.static(key, sparsity))
    return Arm(MLP((16,), 10), optimizer, Weights.SPARSE)


@pytest.mark.full
def test_masks_at_random_are_the_seed_s_own(digits):
    state = arms.begin(at_random(), lanes.seed_keys(0, 2), digits.train.images)
    masks = jp.get_masks(state.opt_state)
    mask = masks["Dense_0"]["kernel"]
    assert (mask[0] != mask[1]).any()
    alone = arms.begin(at_random(), lanes.seed_keys(1, 1), digits.train.images)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a[1], b[0]),
        masks,
        jp.get_masks(alone.opt_state),
    )


@pytest.mark.full
def test_the_first_forward_pass_is_sparse(digits):
    state = arms.begin(at_random(), lanes.seed_keys(0, 2), digits.train.images)
    masks = jp.get_masks(state.opt_state)
    for name in ("Dense_0", "Dense_1"):
        kernel, mask = state.params[name]["kernel"], masks[name]["kernel"]
        assert not kernel[~mask].any()
        assert kernel[mask].all()


@pytest.mark.full
def test_a_dense_copy_learns_where_the_network_is_sparse(digits):
    """One step by hand: the gradient at the masked weights, for all of them."""
    masks = {"Dense_0": {"kernel": np.arange(640).reshape(64, 10) % 3 == 0, "bias": None}}
    tx = optax.chain(jp.track_masks(jp.fixed(masks)), optax.sgd(0.1))
    arm = Arm(MLP((), 10), lambda key: tx, Weights.DENSE_COPY)
    keys = lanes.seed_keys(0, 1)
    state = arms.begin(arm, keys, digits.train.images)
    before = jax.tree.map(lambda x: np.array(x[0]), state.params)
    order = np.arange(8)[None, None]
    step = arms.program_of(arm, digits.train, 8, 1).step
    state, _ = lanes.chunk(step)(state, digits.train, order, arms.seeds_of(keys))

    def loss(params):
        batch = digits.train.images[:8], digits.train.labels[:8]
        return models.classification(arm.module)(params, {}, *batch)[0]

    grads = jax.grad(loss)(jp.apply_masks(before, masks))
    for name in ("kernel", "bias"):
        after = state.params["Dense_0"][name][0]
        expected = before["Dense_0"][name] - 0.1 * grads["Dense_0"][name]
        np.testing.assert_allclose(after, expected, atol=1e-6)
    used = arms.network(arm, state)["Dense_0"]["kernel"][0]
    kernel = state.params["Dense_0"]["kernel"][0]
    np.testing.assert_array_equal(used, np.where(masks["Dense_0"]["kernel"], kernel, 0))


def test_the_best_is_the_most_accurate_of_the_sparsest():
    """Means over arms with masks; of all where there is none."""
    dense = {"test_accuracy": [0.9, 0.7]}
    sparse = {"sparsity": [0.5, 0.7], "test_accuracy": [0.5, 0.7]}
    found = arms._score({"step": 3, "dense": dense, "sparse": sparse})
    assert found == pytest.approx([0.6, 0.6])
    assert arms._score({"step": 3, "dense": dense}) == pytest.approx([0.0, 0.8])
