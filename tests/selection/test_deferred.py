"""Scores that are never written select as if they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.selection.deferred import Deferred, Layer, cut, defer, read_anew, written
from jaxprune.selection.largest import largest


def scores_of(score):
    return lambda p, g: score(p, grads=g)


@pytest.mark.parametrize("score", [jp.magnitude, jp.saliency, jp.gradient])
def test_elementwise_scores_are_deferred(score, params, grads):
    deferred, arrays = defer(scores_of(score), params, grads), score(params, grads=grads)
    for lazy, array in zip(
        jax.tree.leaves(deferred, is_leaf=lambda x: isinstance(x, Deferred)),
        jax.tree.leaves(arrays),
        strict=True,
    ):
        assert isinstance(lazy, Deferred)
        assert (lazy.shape, lazy.dtype, lazy.size, lazy.ndim) == (
            (array.shape, array.dtype, array.size, array.ndim)
        )
        np.testing.assert_array_equal(jnp.asarray(lazy), array)


@pytest.mark.parametrize("score", [jp.random(jax.random.key(0)), jp.lamp(), jp.lamp(jp.gradient)])
def test_scores_with_more_to_them_are_arrays(score):
    w, g = jnp.array([3.0, -1.0, 2.0]), jnp.array([1.0, 2.0, -4.0])
    leaf = defer(scores_of(score), w, g)
    assert isinstance(leaf, jax.Array)
    np.testing.assert_array_equal(leaf, score(w, grads=g))


def test_each_leaf_is_deferred_or_not_by_itself():
    w = jnp.array([3.0, -1.0])
    mixed = defer(lambda w: {"lazy": -w, "now": w.sum()}, w)
    assert isinstance(mixed["lazy"], Deferred) and isinstance(mixed["now"], jax.Array)
    assert jnp.asarray(mixed["lazy"]).tolist() == [-3, 1] and float(mixed["now"]) == 2


def test_a_deferred_leaf_holds_only_what_it_reads(params, grads):
    lazy = defer(scores_of(jp.gradient), params, grads)["Dense_0"]["kernel"]
    assert len(lazy.operands) == 1 and lazy.operands[0] is grads["Dense_0"]["kernel"]


def test_holes_stay_holes(params):
    deferred = defer(lambda p: jp.magnitude(jp.kernels(p)), params)
    assert deferred["Dense_0"]["bias"] is None and isinstance(
        deferred["Dense_0"]["kernel"], Deferred
    )


def test_a_closed_over_tracer_is_no_obstacle():
    w = jnp.array([[3.0, -1.0], [2.0, -4.0]])

    @jax.jit
    def f(w, scale):
        deferred = defer(lambda w: jnp.abs(w) * scale, w)
        assert isinstance(deferred, Deferred)
        return largest([deferred], [2])[0]

    assert f(w, w).tolist() == [[True, False], [True, False]]  # 9, -1, 4, -16


@pytest.mark.parametrize("together", [False, True])
def test_selecting_from_deferred_equals_selecting_from_arrays(together, params, grads):
    @jax.jit
    def select(params, grads, k):
        leaves = jax.tree.leaves(
            defer(scores_of(jp.saliency), params, grads), is_leaf=lambda x: isinstance(x, Deferred)
        )
        assert all(isinstance(leaf, Deferred) for leaf in leaves)
        return largest(leaves, k, together)

    arrays = jax.tree.leaves(jp.saliency(params, grads=grads))
    ks = [0, 25, 58] if together else [[5, 17, 1, 2], [0, 32, 2, 16]]
    for k in ks:
        masks = select(params, grads, jnp.array(k))
        jax.tree.map(np.testing.assert_array_equal, masks, largest(arrays, k, together))


def test_deferred_under_vmap_equals_a_loop():
    w = jax.random.normal(jax.random.key(0), (4, 6, 5))
    select = lambda w, k: largest([defer(jp.magnitude, [w])[0]], [k])[0]
    ks = jnp.array([0, 7, 15, 30])
    for lane, own, k in zip(jax.jit(jax.vmap(select))(w, ks), w, ks, strict=True):
        np.testing.assert_array_equal(lane, largest([jnp.abs(own)], [k])[0])


def temporary_bytes(f, *args):
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("allocation", [jp.uniform, jp.global_threshold])
def test_a_deferred_selection_writes_no_scores(allocation):
    params = {
        "flat": jnp.ones(2**17),
        "two": jnp.ones((256, 512)),
        "conv": jnp.ones((3, 3, 64, 256)),
    }
    size = sum(x.nbytes for x in params.values())

    def lazy(p):
        return jp.select(defer(jp.magnitude, p), allocation, 0.9)

    assert temporary_bytes(lazy, params) < size / 50


@pytest.mark.parametrize("last_first", [False, True])
def test_arrays_are_read_in_the_order_of_the_leaves(last_first):
    """Not in the order of their ids, which differs from trace to trace: so would the program."""
    wanted = []

    def read(*arrays):
        leaves = sorted(arrays, key=id, reverse=last_first)
        wanted.extend(x.shape for x in leaves)
        return read_anew(leaves, jnp.int32(0))

    program = jax.make_jaxpr(read)(*(jnp.ones(n) for n in range(1, 6)))
    (barrier,) = (e for e in program.eqns if e.primitive.name == "optimization_barrier")
    assert [x.aval.shape for x in barrier.invars[:5]] == wanted


def test_the_scores_that_a_sort_writes_are_seen():
    # so that the test above can fail
    params = {"a": jnp.ones((256, 512))}
    eager = temporary_bytes(lambda p: jp.select(jp.lamp()(p), jp.uniform, 0.9), params)
    assert eager > params["a"].nbytes


def test_what_is_done_with_all_layers_is_done_with_their_stack():
    w = jnp.arange(24.0).reshape(2, 3, 4)
    layers = cut(w, (2, 0), (4, 2))
    assert [x.place.at for x in layers] == [(i, j) for j in range(4) for i in range(2)]
    np.testing.assert_array_equal(jnp.asarray(layers[3]), w[1, :, 1])
    scaled = defer(lambda xs, y: [y * jnp.abs(x) for x in xs], layers, jnp.float32(2))
    stack = scaled[0].stack
    assert all(isinstance(x, Layer) and x.stack is stack for x in scaled)
    assert isinstance(stack, Deferred) and stack.operands[0] is w
    np.testing.assert_array_equal(jnp.asarray(stack), 2 * w)
    again = written(defer(lambda xs: [x + 1 for x in xs], scaled))
    np.testing.assert_array_equal(again[0].stack, 2 * w + 1)
    np.testing.assert_array_equal(jnp.asarray(again[3]), 2 * w[1, :, 1] + 1)


@pytest.mark.parametrize(
    "f",
    [
        lambda xs: xs[:1],  # not all of them
        lambda xs: [xs[0], 2 * xs[1]],  # not in the same way
        lambda xs: [xs[0] + xs[1], xs[1]],  # not one by one
        lambda xs: [x * np.arange(3.0, dtype=np.float32) * i for i, x in enumerate(xs)],
        lambda xs: [x[:2] for x in xs],
    ],
)
def test_what_is_not_done_with_all_layers_alike_is_done_with_each(f):
    w = jnp.arange(6.0).reshape(2, 3)
    found = defer(f, cut(w, (0,), (2,)))
    assert not any(isinstance(x, Layer) for x in found)
    for x, wanted in zip(found, f(list(w)), strict=True):
        np.testing.assert_array_equal(jnp.asarray(x), wanted)
