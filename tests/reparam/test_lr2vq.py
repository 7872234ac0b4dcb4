"""LR2VQ: exact where the weights are of a low rank and few, sizes by hand, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

SIXTEEN = jax.random.normal(jax.random.key(0), (16, 2)) + jnp.arange(16.0)[:, None]
LONG = SIXTEEN @ jax.random.normal(jax.random.key(1), (2, 4))  # sixteen groups of four, rank 2


def used(method, w):
    return np.asarray(method.apply(method.init({"kernel": w}))["kernel"])


def groups(w, m=4):
    """Groups of m inputs of a (inputs, outputs), output by output."""
    return np.asarray(w).T.reshape(-1, m)


def test_few_vectors_of_a_low_rank_are_exact():
    """64 groups of which sixteen differ: four bits and two directions are enough."""
    w = LONG[jax.random.permutation(jax.random.key(2), jnp.tile(jnp.arange(16), 4))]
    w = w.reshape(8, 32).T
    np.testing.assert_allclose(used(jp.reparam.lr2vq(4, 4, 2), w), w, rtol=1e-4, atol=1e-4)
    one_direction = used(jp.reparam.lr2vq(4, 4, 1), w)
    assert np.linalg.matrix_rank(groups(one_direction), tol=1e-3) == 1
    assert abs(one_direction - w).max() > 0.1


def test_groups_are_inputs_of_one_output_and_there_are_two_to_the_bits():
    w = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
    x = used(jp.reparam.lr2vq(3, 6, 3), w).reshape(36, 5)
    assert len(np.unique(groups(x, 6).round(5), axis=0)) == 8
    assert np.linalg.matrix_rank(groups(x, 6), tol=1e-4) == 3


@pytest.mark.full
def test_more_clusters_and_more_directions_are_nearer():
    w = jax.random.normal(jax.random.key(3), (64, 32))
    error = lambda *args: ((used(jp.reparam.lr2vq(*args), w) - w) ** 2).mean()
    assert error(2, 4, 2) > error(4, 4, 2) > error(6, 4, 2)
    # of plain normal weights a rank of 2 of 4 loses about half of the squares, however many bits
    assert error(8, 4, 2) > 0.3 and error(8, 4, 4) < 0.2


def test_pruned_weights_stay_zero_and_without_weights_nothing_is_nan():
    w = jax.random.normal(jax.random.key(0), (16, 8))
    w = w * (jax.random.uniform(jax.random.key(1), (16, 8)) < 0.3)
    np.testing.assert_array_equal(used(jp.reparam.lr2vq(3), w) == 0, w == 0)
    method = jp.reparam.lr2vq(3)
    learned = method.init({"kernel": jnp.zeros((16, 8))})
    slopes = jax.grad(lambda x: (method.apply(x)["kernel"] ** 2).sum())(learned)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((learned, slopes)))


def test_gradients_are_those_of_the_product():
    """The product of basis and value by hand, of two groups that share a code."""
    method = jp.reparam.lr2vq(1, m=2, rank=1)
    learned = method.init({"kernel": jnp.array([[1.0, 1.0, -1.0], [2.0, 2.0, -2.0]])})
    learned = learned._replace(
        values={"kernel": jnp.array([[3.0], [5.0]])}, basis={"kernel": jnp.array([[1.0], [10.0]])}
    )
    shared, other = sorted(
        (3.0, 5.0), key=lambda v: float(v != method.apply(learned)["kernel"][0, 0])
    )
    by_hand = [[shared, shared, other], [10 * shared, 10 * shared, 10 * other]]
    np.testing.assert_array_equal(method.apply(learned)["kernel"], by_hand)
    slopes = jax.grad(lambda x: method.apply(x)["kernel"].sum())(learned)
    assert sorted(np.asarray(slopes.values["kernel"]).ravel()) == [11, 22]
    np.testing.assert_array_equal(slopes.basis["kernel"].ravel(), [2 * shared + other] * 2)


def test_the_size_by_hand():
    """A code for each m weights, 2^bits vectors of `rank`, and m x rank of the basis."""
    params = {"kernel": jnp.ones((16, 8)), "bias": jnp.ones(8)}
    learned = jp.reparam.lr2vq(3, 4, 2).init(params)
    table = 8 * 2 + 4 * 2
    assert jp.reparam.lr2vq_size(learned) == (32 + table + 8, 32 * 3 + 32 * table + 32 * 8)
    masks = {"kernel": jnp.ones((16, 8), bool), "bias": None}
    assert jp.reparam.lr2vq_size(learned, masks).bits == 32 * 3 + 32 * table + 32 * 8 + 128
    shapes = jax.eval_shape(jp.reparam.lr2vq(3, 4, 2).init, params)
    assert jp.reparam.lr2vq_size(shapes) == jp.reparam.lr2vq_size(learned)


def test_a_leaf_may_have_fewer_groups_than_a_group_has_weights():
    w = jnp.arange(1.0, 9).reshape(4, 2)
    method = jp.reparam.lr2vq(1, 4, 4)
    learned = method.init({"kernel": w})
    assert learned.basis["kernel"].shape == (4, 4)
    np.testing.assert_allclose(method.apply(learned)["kernel"], w, rtol=1e-5)


def test_clear_errors():
    for m, rank in ((0, 1), (4, 5), (4, 0), (2.0, 1)):
        with pytest.raises(ValueError, match=rf"rank is 1 to m; got m={m} and rank={rank}"):
            jp.reparam.lr2vq(m=m, rank=rank)
    with pytest.raises(ValueError, match=r"lr2vq: bits is an int from 1 to 8.*got 12"):
        jp.reparam.lr2vq(12)
    with pytest.raises(ValueError, match=r"'kernel' of shape \(6, 2\) has 6 inputs.*groups of 4"):
        jp.reparam.lr2vq().init({"kernel": jnp.ones((6, 2))})
