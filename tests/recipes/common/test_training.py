"""Training many seeds at once is what training each alone would be."""

from itertools import islice

import jax
import numpy as np
import optax
import pytest

import jaxprune as jp
from recipes.common import data, training
from recipes.common.models import MLP, model


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_examples=256)


def pruned_adam():
    schedule = optax.polynomial_schedule(0.0, 0.8, 3, transition_steps=6, transition_begin=2)
    gmp = jp.prune(jp.magnitude, jp.global_threshold, schedule)
    return jp.sparsify(optax.adam(1e-2), jp.every(2, gmp, start=2, stop=8))


def run(module, tx, digits, keys, chunk_steps=5, steps=12):
    points = training.train(
        training.make_chunk(training.classification(module), tx),
        training.init(module, tx, keys, digits.train.images),
        jax.device_put(digits.train),
        keys,
        batch_size=32,
        steps=steps,
        chunk_steps=chunk_steps,
    )
    # a yielded state is donated to the next chunk: only the last one is still there
    return [(p.step, p.loss, p.accuracy, p.state) for p in points]


def test_vmapped_seeds_equal_separate_runs(digits):
    module, tx = MLP((16,), 10), pruned_adam()
    together = run(module, tx, digits, training.seed_keys(3, 2))
    assert [point[0] for point in together] == [5, 10, 12]
    for i in range(2):
        alone = run(module, tx, digits, training.seed_keys(3 + i, 1))
        for (_, loss, accuracy, _), (_, one_loss, one_accuracy, _) in zip(
            together, alone, strict=True
        ):
            np.testing.assert_allclose(loss[i : i + 1], one_loss, rtol=1e-4)
            np.testing.assert_allclose(accuracy[i : i + 1], one_accuracy, atol=0.05)
        masks, one = (jp.get_masks(points[-1][3].opt_state) for points in (together, alone))
        same = jax.tree.map(lambda a, b, i=i: np.mean(a[i] == b[0]), masks, one)
        assert min(jax.tree.leaves(same)) > 0.99


def test_it_learns_and_the_masks_hold(digits):
    points = run(
        MLP((32,), 10), pruned_adam(), digits, training.seed_keys(0, 2), chunk_steps=20, steps=80
    )
    state = points[-1][3]
    assert points[-1][1].mean() < 0.5 * points[0][1].mean()
    masks = jp.get_masks(state.opt_state)
    np.testing.assert_allclose(jax.vmap(jp.sparsity)(masks), 0.8, atol=1e-3)
    for name in ("Dense_0", "Dense_1"):
        pruned = state.params[name]["kernel"][~masks[name]["kernel"]]
        assert not pruned.any()


def test_seeds_start_differently_and_arms_alike(digits):
    keys = training.seed_keys(0, 2)
    dense = training.init(MLP((4,), 10), optax.adam(1e-3), keys, digits.train.images)
    sparse = training.init(MLP((4,), 10), pruned_adam(), keys, digits.train.images)
    jax.tree.map(np.testing.assert_array_equal, dense.params, sparse.params)
    kernel = dense.params["Dense_0"]["kernel"]
    assert (kernel[0] != kernel[1]).any()


def test_data_order_is_a_permutation_per_epoch_and_seed():
    keys = training.seed_keys(0, 2)
    steps = list(islice(training.data_order(keys, examples=11, batch_size=3), 7))
    epochs = np.stack(steps[:6]).reshape(2, 3, 2, 3).swapaxes(1, 2).reshape(2, 2, 9)
    for epoch in epochs:
        for order in epoch:
            assert len(set(order.tolist())) == 9
    assert (epochs[0, 0] != epochs[0, 1]).any()
    assert (epochs[0, 0] != epochs[1, 0]).any()
    later = next(training.data_order(keys, examples=11, batch_size=3, start=6))
    np.testing.assert_array_equal(later, steps[6])


def test_evaluate_counts_every_example_once(digits):
    module = MLP((8,), 10)
    state = training.init(module, optax.sgd(0.1), training.seed_keys(0, 3), digits.train.images)
    accuracy = training.make_evaluate(module, digits.test, batch_size=50)(state)
    for i in range(3):
        params = jax.tree.map(lambda x, i=i: x[i], state.params)
        logits = module.apply({"params": params}, digits.test.images)
        right = (np.argmax(logits, -1) == digits.test.labels).sum()
        np.testing.assert_allclose(accuracy[i], right / 360)


def test_running_statistics_are_trained_per_seed(digits):
    module, keys = model("conv", 10, "batch"), training.seed_keys(0, 2)
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
    run(MLP((4,), 10), spy, digits, training.seed_keys(0, 1), chunk_steps=1, steps=1)
    assert seen[0] == {"value"}
