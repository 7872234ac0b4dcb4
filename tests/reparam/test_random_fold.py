"""Random sharing: the worked numbers, plain training at compression 1, slopes, masks, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.reparam.folding import Places, random_places, spread, sums
from tests.transforms import loss, tiny_params

KEY = jax.random.key(3)
BY_HAND = Places(jnp.array([1, 3, 0]), None)  # of 10 weights in an array of 4


def test_places_slopes_and_squares_by_hand():
    """Scale 2 on the first four weights, 1 on the others; the gradient of weight i is i + 1."""
    scale = jnp.where(jnp.arange(10) < 4, 2.0, 1.0)
    places = spread(jnp.arange(4.0), 10, BY_HAND)
    np.testing.assert_array_equal(places, [1, 2, 3, 0, 3, 0, 1, 2, 0, 1])
    slopes = sums(scale * jnp.arange(1.0, 11), 4, BY_HAND)
    squares = sums(scale**2, 4, BY_HAND)
    np.testing.assert_array_equal(slopes, [23, 19, 12, 11])
    np.testing.assert_array_equal(squares, [6, 6, 5, 5])
    np.testing.assert_allclose(slopes / squares, [3.8333, 3.1667, 2.4, 2.2], rtol=1e-4)


def test_signs_are_fair_and_unrelated():
    drawn = spread(jnp.ones(1000), 50_000, random_places(KEY, 50_000, 1000)).reshape(50, 1000)
    assert set(np.unique(drawn)) == {-1, 1}
    assert abs(drawn.mean()) < 5 / 50_000**0.5
    between_rows = np.abs(np.asarray(drawn @ drawn.T / 1000 - jnp.eye(50)))
    assert between_rows.max() < 6 / 1000**0.5
    neighbors = (drawn[:, 1:] * drawn[:, :-1]).mean()
    assert abs(neighbors) < 5 / 50_000**0.5


@pytest.mark.parametrize("compression", [1, 2.5, 7, 576])
def test_each_number_makes_equally_many_weights_and_first_weights_keep_their_deviation(compression):
    params = tiny_params()
    learned = jp.reparam.random_fold(KEY, compression).init(params)
    m = round(576 / compression)
    assert learned.shared.shape == (m,) and learned.scales.shape == (2,)
    loads = sums(jnp.ones(576), m, random_places(KEY, 576, m)._replace(signs=None))
    assert set(np.asarray(loads)) <= {576 // m, -(-576 // m)} and loads.sum() == 576
    if m > 100:
        used = jp.reparam.random_fold(KEY, compression).apply(learned)
        for name in ("Dense_0", "Dense_1"):
            was, now = jnp.std(params[name]["kernel"]), jnp.std(used[name]["kernel"])
            np.testing.assert_allclose(now, was, rtol=0.1)


def test_what_is_stored():
    params = tiny_params()
    learned = jp.reparam.random_fold(KEY, 12).init(params)
    rest = 24 + 1  # a bias and a scalar
    assert jp.reparam.size_of(learned) == (48 + 2 + rest, 32 * (48 + 2 + rest))
    half = jp.reparam.random_fold(KEY, 12).init(tiny_params(jnp.bfloat16))
    used = jp.reparam.random_fold(KEY, 12).apply(half)
    assert used["Dense_1"]["kernel"].dtype == jnp.bfloat16
    assert jax.tree.structure(used) == jax.tree.structure(params)


def steps_of(value, start, n=5):
    tx = optax.sgd(1e-2)
    state = tx.init(start)
    for _ in range(n):
        updates, state = tx.update(jax.grad(value)(start), state, start)
        start = optax.apply_updates(start, updates)
    return start


def test_compression_1_is_plain_training():
    """Pareto-continuity: a number that makes one weight moves it as it would move alone."""
    params = tiny_params()
    whole = jp.reparam.random_fold(KEY, 1)
    learned = steps_of(lambda learned: loss(whole.apply(learned)), whole.init(params))
    plain = steps_of(loss, params)
    for a, b in zip(*map(jax.tree.leaves, (whole.apply(learned), plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_scales_do_not_change_how_far_weights_move():
    method = jp.reparam.random_fold(KEY, 4)
    learned = method.init(tiny_params())
    larger = learned._replace(shared=learned.shared / 10, scales=10 * learned.scales)
    value = lambda learned: loss(method.apply(learned))
    for a, b in zip(
        *(jax.tree.leaves(method.apply(steps_of(value, start))) for start in (learned, larger)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stable", [True, False])
def test_slopes_are_those_of_the_forward_mode_and_without_division_exact(stable):
    method = jp.reparam.random_fold(KEY, 4, stable)
    learned = method.init(tiny_params())
    value = lambda shared: loss(method.apply(learned._replace(shared=shared)))
    slope = jax.grad(value)(learned.shared)
    np.testing.assert_allclose(slope, jax.jacfwd(value)(learned.shared), rtol=1e-4, atol=1e-4)
    way = jnp.cos(jnp.arange(144.0))
    near = [value(learned.shared + h * way) for h in (1e-2, -1e-2)]
    exact = np.isclose((near[0] - near[1]) / 2e-2, slope @ way, rtol=1e-2)
    assert exact != stable


def test_masks_of_the_shared_numbers_prune_all_their_weights():
    method = jp.reparam.random_fold(KEY, 4)
    learned = method.init(tiny_params())
    transform = jp.prune(jp.magnitude, jp.uniform, 0.5, prunable=jp.matching("shared"))
    tx = jp.sparsify(optax.sgd(1e-2), transform)
    state = tx.init(learned)
    slopes = jax.grad(lambda learned: loss(method.apply(learned)))(learned)
    learned = optax.apply_updates(learned, tx.update(slopes, state, learned)[0])
    used = method.apply(learned)
    zeros = sum(int((used[name]["kernel"] == 0).sum()) for name in ("Dense_0", "Dense_1"))
    assert (learned.shared == 0).sum() == 72 and zeros == 576 // 2


@pytest.mark.parametrize("compression", [0.5, 0, -1, float("nan"), float("inf"), "10", None])
def test_a_compression_that_cannot_be_is_refused(compression):
    with pytest.raises(ValueError, match=r"at least 1; got .* For a tenth of the numbers take 10"):
        jp.reparam.random_fold(KEY, compression)


def test_mistakes_of_params():
    with pytest.raises(TypeError, match=r"random_fold\(key, \.\.\.\) needs a key"):
        jp.reparam.random_fold(10)
    with pytest.raises(ValueError, match=r"compression is 1000, and there are only 576 weights"):
        jp.reparam.random_fold(KEY, 1000).init(tiny_params())
    with pytest.raises(ValueError, match=r"'b/kernel' is all zeros.*matching\(exclude='b/kernel'"):
        jp.reparam.random_fold(KEY, 2).init(
            {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.zeros((2, 2))}}
        )
    with pytest.raises(TypeError, match=r"'kernel' is int32, and only floats"):
        jp.reparam.random_fold(KEY, 2, prunable=jp.matching("*")).init(
            {"kernel": jnp.ones((2, 2), jnp.int32)}
        )
