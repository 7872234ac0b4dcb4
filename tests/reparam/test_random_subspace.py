"""Random subspaces: orthonormal directions, projected steps, one program for all d, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.reparam.random_subspace import along, hadamard
from tests.quick import quick
from tests.transforms import loss, tiny_params

KEY = jax.random.key(3)


def directions(n, d, key=KEY):
    """The matrix P (n, d)."""
    return np.asarray(jax.jacobian(lambda z: along(key, z, n))(jnp.zeros(d)))


@pytest.mark.parametrize("length", [1, 2, 64, 2048])
def test_hadamard_rows_are_orthogonal(length):
    matrix = np.asarray(hadamard(jnp.eye(length)))
    np.testing.assert_array_equal(np.abs(matrix), 1)
    np.testing.assert_array_equal(matrix @ matrix.T, length * np.eye(length))


@pytest.mark.parametrize("sizes", quick([(64, 8), (64, 64), (4096, 40)], (64, 8)))
def test_columns_are_orthonormal(sizes):
    p = directions(*sizes).astype(np.float64)
    np.testing.assert_allclose(p.T @ p, np.eye(sizes[1]), atol=1e-6)


def test_columns_are_nearly_orthonormal_where_a_block_is_cut():
    p = directions(3000, 20)
    np.testing.assert_allclose(p.T @ p, np.eye(20), atol=0.04)


def test_another_key_has_other_directions():
    first, second = directions(64, 4), directions(64, 4, jax.random.key(4))
    assert (np.linalg.svd(first.T @ second)[1] < 0.9).all()


def test_the_slope_is_the_projected_gradient():
    params = tiny_params()
    method = jp.reparam.random_subspace(KEY, 7)
    slopes = jax.grad(lambda learned: loss(method.apply(learned)))(method.init(params))
    whole = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.grad(loss)(params))])
    np.testing.assert_allclose(slopes.point, directions(len(whole), 7).T @ whole, rtol=1e-4)
    assert not any(leaf.any() for leaf in jax.tree.leaves(slopes.weights))


def test_all_dimensions_are_plain_training():
    """With d = D gradient descent on the point is gradient descent on the params."""
    params = {"kernel": tiny_params()["Dense_0"]["kernel"][:, :16]}  # 256 = a power of two
    method, tx = jp.reparam.random_subspace(KEY, 256), optax.sgd(0.05)
    learned, plain = method.init(params), params
    for _ in range(3):
        slopes = jax.grad(lambda learned: loss(method.apply(learned)))(learned)
        learned = optax.apply_updates(learned, tx.update(slopes, tx.init(learned))[0])
        plain = optax.apply_updates(plain, tx.update(jax.grad(loss)(plain), tx.init(plain))[0])
    moved = np.abs(plain["kernel"] - params["kernel"]).max()
    np.testing.assert_allclose(method.apply(learned)["kernel"], plain["kernel"], atol=1e-5 * moved)


def test_masks_of_the_point_choose_the_first_dimensions():
    """One program for all d: under masks of the first 5 of 12, it moves along 5 directions."""
    params = tiny_params()
    method = jp.reparam.random_subspace(KEY, 12)
    first = method.init(params)
    masks = jax.tree.map(lambda _: None, first)._replace(point=jnp.arange(12) < 5)
    tx = jp.sparsify(optax.adam(0.1), jp.fixed(masks))
    learned, state = first, tx.init(first)
    for _ in range(3):
        slopes = jax.grad(lambda learned: loss(method.apply(learned)))(learned)
        updates, state = tx.update(slopes, state, learned)
        learned = optax.apply_updates(learned, updates)
    assert (learned.point[:5] != 0).all() and not learned.point[5:].any()
    apart = jax.tree.map(lambda a, b: a - b, method.apply(learned), params)
    way = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(apart)])
    p = directions(len(way), 12)[:, :5]
    np.testing.assert_allclose(p @ np.linalg.lstsq(p, way)[0], way, atol=1e-5)


def test_nothing_of_the_size_of_the_directions_is_stored_or_made():
    method = jp.reparam.random_subspace(KEY, 500)
    params = {"kernel": jnp.ones((1000, 100))}
    learned = method.init(params)
    assert jp.reparam.size_of(learned).numbers == 100_000 + 500
    program = jax.make_jaxpr(method.apply)(learned)
    largest = max(v.aval.size for eqn in program.eqns for v in eqn.outvars)
    assert largest <= 2 * 100_000


@pytest.mark.parametrize("d", [0, -1, 2.0, True, None])
def test_a_d_that_cannot_be_is_refused(d):
    with pytest.raises(ValueError, match="d is a whole number, at least 1"):
        jp.reparam.random_subspace(KEY, d)


def test_mistakes_of_params():
    with pytest.raises(TypeError, match=r"random_subspace\(key, \.\.\.\) needs a key"):
        jp.reparam.random_subspace(10, 3)
    with pytest.raises(ValueError, match=r"d is 1,000, and the params have only 601 dimensions"):
        jp.reparam.random_subspace(KEY, 1000).init(tiny_params())
    with pytest.raises(TypeError, match=r"'steps' is int32, and only floats"):
        jp.reparam.random_subspace(KEY, 1).init({"kernel": jnp.ones((2, 2)), "steps": jnp.array(3)})
