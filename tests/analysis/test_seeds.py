"""The program of many seeds, as printed: train them in one call, then compare all pairs."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import jaxprune as jp

IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES, LABELS = (IMAGES.astype(np.float32) - 4.884) / 6.017, LABELS.astype(np.int32)
SEEDS, STEPS, BATCH = 8, 200, 64


class MLP(nn.Module):
    """One hidden layer."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(32)(x)))


def cross_entropy(params, x, y):
    logits = MLP().apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train(tx, params, key):
    def step(carry, i):
        params, opt_state = carry
        rows = jax.random.choice(jax.random.fold_in(key, i), 1400, (BATCH,))
        grads = jax.grad(cross_entropy)(
            params, jnp.asarray(IMAGES)[rows], jnp.asarray(LABELS)[rows]
        )
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, opt_state), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(STEPS))
    return params, jp.get_masks(opt_state)


def test_loss(params):
    logits = MLP().apply(params, IMAGES[1400:])
    wrong = jnp.argmax(logits, -1) != LABELS[1400:]
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, LABELS[1400:]).mean(),
        "error": wrong.mean(),
    }


test_loss.__test__ = False


def run(key, init_key=None):  # random ERK sparse training
    own_key, mask_key, data_key = jax.random.split(key, 3)
    params = MLP().init(own_key if init_key is None else init_key, IMAGES[:1])
    mask_key = mask_key if init_key is None else init_key
    masks = jp.select(jp.random(mask_key)(jp.kernels(params)), jp.erk, sparsity=0.8)
    tx = jp.sparsify(optax.adam(5e-3), jp.fixed(masks))
    return train(tx, jp.apply_masks(params, masks), data_key)


@pytest.fixture(scope="module")
def seeds():
    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), SEEDS))


@pytest.fixture(scope="module")
def children():
    """As many runs of one initial network under one mask: only the order of the data differs."""
    siblings = jax.jit(jax.vmap(lambda key: run(key, jax.random.key(1))))
    return siblings(jax.random.split(jax.random.key(0), SEEDS))


@pytest.mark.full
def test_the_program_of_the_design(seeds):
    params, masks = seeds
    barriers = jp.pairwise(partial(jp.barrier, test_loss), params)  # (8, 8)
    overlaps = jp.pairwise(jp.overlap, masks)
    for matrix in (barriers["loss"], barriers["error"], overlaps):
        assert matrix.shape == (SEEDS, SEEDS)
        np.testing.assert_array_equal(matrix, matrix.T)
    assert (jnp.diag(barriers["error"]) == 0).all() and (jnp.diag(overlaps) == 1).all()
    # random masks of density d share d / (2 - d): 0.11 at 0.2
    off = ~np.eye(SEEDS, dtype=bool)
    assert 0.1 < overlaps[off].mean() < 0.2
    assert (barriers["loss"][off] > 0).all()


@pytest.mark.full
def test_one_basin_or_many(seeds, children):
    # children of one init and one mask are in one basin; different inits are not
    barrier = partial(jp.barrier, test_loss, points=5)
    alone, together = (
        jp.pairwise(barrier, params, diagonal=0.0)["loss"] for params, _ in (seeds, children)
    )
    assert jp.analysis.connected_components(alone, 0.1).tolist() == list(range(SEEDS))
    assert jp.analysis.connected_components(together, 0.1).tolist() == [0] * SEEDS
    apart, near = jp.analysis.jackknife(alone), jp.analysis.jackknife(together)
    assert apart.mean - 3 * apart.standard_error > near.mean + 3 * near.standard_error
    overlaps = jp.pairwise(jp.overlap, children[1])
    assert (overlaps == 1).all()


@pytest.mark.full
def test_a_common_mask_keeps_its_sparsity_on_the_whole_line(children):
    params, masks = children
    a, b = (jax.tree.map(lambda x, i=i: x[i], params) for i in (0, 1))
    mask = jax.tree.map(lambda x: x[0], masks)["params"]["Dense_0"]["kernel"]
    for alpha in (0.0, 0.3, 0.5, 1.0):
        kernel = jp.analysis.lerp(a, b, alpha)["params"]["Dense_0"]["kernel"]
        assert not (kernel[~mask] != 0).any()


@pytest.mark.full
def test_a_curve_joins_what_a_line_does_not(children, seeds):
    a, b = (jax.tree.map(lambda x, i=i: x[i], seeds[0]) for i in (0, 1))

    def loss(params, key):
        rows = jax.random.choice(key, 1400, (BATCH,))
        return cross_entropy(params, jnp.asarray(IMAGES)[rows], jnp.asarray(LABELS)[rows])

    middle, _ = jp.analysis.fit_curve(jax.random.key(0), loss, a, b, optax.adam(5e-3), 300)
    straight = jp.barrier(test_loss, a, b)["loss"]
    curved = jp.barrier(test_loss, a, b, path=partial(jp.analysis.bezier, middle))["loss"]
    assert curved < 0.3 * straight
