"""Lines and planes: the card's coordinates, linear and quadratic losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.analysis import coordinates, line, plane, plane_through, random_direction


def square(tree):
    return sum(jnp.sum(w**2) for w in jax.tree.leaves(tree))


def raised(f, kind=ValueError):
    with pytest.raises(kind) as error:
        f()
    return str(error.value)


# --- lines and planes ----------------------------------------------------------------------------


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_a_plane_of_a_quadratic(params, grads, chunk, unroll):
    xs, ys = jnp.linspace(-1, 1, 5), jnp.linspace(0, 2, 3)
    y = jax.tree.map(jnp.ones_like, params)
    got = plane(square, params, grads, y, xs, ys, chunk=chunk, unroll=unroll)
    assert got.shape == (3, 5)
    at = lambda a, b: jax.tree.map(lambda w, d, e: w + a * d + b * e, params, grads, y)
    want = [[square(at(a, b)) for a in xs] for b in ys]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("unroll", [False, True])
def test_a_line_and_a_plane_of_several_numbers(params, grads, unroll):
    both = lambda p: {"loss": square(p), "first": p["Dense_0"]["bias"][0]}
    xs = [-1.0, 0.0, 0.5]
    got = line(both, params, grads, xs, chunk=2, unroll=unroll)
    assert got["loss"].shape == (3,) and got["loss"][1] == square(params)
    wanted = params["Dense_0"]["bias"][0] + jnp.array(xs) * grads["Dense_0"]["bias"][0]
    np.testing.assert_allclose(got["first"], wanted, rtol=1e-6)
    flat = plane(both, params, grads, grads, xs, [0.0], unroll=unroll)
    np.testing.assert_allclose(flat["first"][0], wanted, rtol=1e-6)


def test_the_plane_keeps_the_masks(params, masks):
    origin = jp.apply_masks(params, masks)
    x, y = (random_direction(jax.random.key(k), params, masks) for k in (0, 1))
    pruned = lambda p: sum(
        jnp.sum(jnp.where(masks[n]["kernel"], 0, jnp.abs(p[n]["kernel"]))) for n in masks
    )
    assert not plane(pruned, origin, x, y, [-1.0, 2.0], [0.5, 1.0]).any()


def test_planes_of_a_stack(params, grads):
    stack = jax.tree.map(lambda w, g: jnp.stack([w, g]), params, grads)
    f = lambda w: plane(square, w, grads, params, [0.0, 1.0], [0.0, 2.0], chunk=2)
    lanes = jax.jit(jax.vmap(f))(stack)
    np.testing.assert_allclose(lanes, jnp.stack([f(params), f(grads)]), rtol=1e-5)


def test_params_in_half_precision_stay_so():
    w = jnp.ones((2,), jnp.bfloat16)
    kinds = []
    line(lambda p: kinds.append(p.dtype) or jnp.sum(p), w, w, [0.0, 1.0])
    assert set(kinds) == {jnp.dtype(jnp.bfloat16)}


def test_a_loss_may_be_nan_somewhere():
    got = line(lambda w: jnp.log(w), jnp.zeros(()), jnp.ones(()), [-1.0, 1.0])
    assert jnp.isnan(got[0]) and got[1] == 0


# --- the plane through three models --------------------------------------------------------------


def test_the_plane_of_the_card():
    a, b, c = jnp.zeros(3), jnp.array([2.0, 0, 0]), jnp.array([1.0, 1, 0])
    origin, x, y = frame = plane_through(a, b, c)
    np.testing.assert_array_equal(jnp.stack([origin, x, y]), [[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    for model, wanted in ((a, (0, 0, 0)), (b, (2, 0, 0)), (c, (1, 1, 0))):
        np.testing.assert_allclose(coordinates(frame, model), wanted, atol=1e-6)
    np.testing.assert_allclose(coordinates(frame, jnp.array([3.0, 4, 5])), (3, 4, 5), rtol=1e-6)


def test_the_plane_passes_through_its_models(params, grads):
    c = jax.tree.map(lambda w, g: jnp.sin(3 * w - g), params, grads)
    frame = plane_through(params, grads, c)
    dots = lambda s, t: sum(
        jnp.vdot(v, w) for v, w in zip(jax.tree.leaves(s), jax.tree.leaves(t), strict=True)
    )
    gram = [[dots(s, t) for s in frame[1:]] for t in frame[1:]]
    np.testing.assert_allclose(gram, jnp.eye(2), atol=1e-6)
    for model in (params, grads, c):
        x, y, off = coordinates(frame, model)
        assert off < 1e-5
        got = plane(square, *frame, [x], [y])
        np.testing.assert_allclose(got, square(model).reshape(1, 1), rtol=1e-5)


def test_coordinates_in_axes_that_are_not_orthonormal(params, grads):
    ones = jax.tree.map(jnp.ones_like, params)
    frame = (params, grads, ones)
    there = jax.tree.map(lambda w, x, y: w + 0.3 * x - 2.0 * y, *frame)
    np.testing.assert_allclose(coordinates(frame, there), (0.3, -2.0, 0.0), atol=1e-5)


def test_coordinates_of_a_stack(params, grads):
    ones = jax.tree.map(jnp.ones_like, params)
    frame = plane_through(params, grads, ones)
    stack = jax.tree.map(lambda *w: jnp.stack(w), params, grads, ones)
    got = jax.jit(jax.vmap(lambda w: coordinates(frame, w)))(stack)
    wanted = jnp.stack([coordinates(frame, w) for w in (params, grads, ones)])
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_three_models_on_a_line(params, grads):
    middle = jax.tree.map(lambda w, g: (w + g) / 2, params, grads)
    assert "lie on one line" in raised(lambda: plane_through(params, grads, middle))
    assert "|b - a| = 0" in raised(lambda: plane_through(params, params, grads))
    frame = plane_through(params, grads, jax.tree.map(jnp.ones_like, params))
    parallel = frame._replace(y=frame.x)
    assert "parallel" in raised(lambda: coordinates(parallel, params))


# --- bad input -----------------------------------------------------------------------------------


def test_grids_that_are_none(params):
    said = raised(lambda: plane(square, params, params, params, [], [0.0]))
    assert "xs are coordinates, 1-D and not empty; got shape (0,)" in said
    said = raised(lambda: plane(square, params, params, params, [0.0], 1.0))
    assert "ys are coordinates" in said and "got shape ()" in said
    assert "got shape (1, 1)" in raised(lambda: line(square, params, params, [[0.0]]))


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True, None])
def test_chunks_that_are_none(params, chunk):
    said = raised(lambda: line(square, params, params, [0.0], chunk=chunk))
    assert f"line: chunk is a number of points, at least 1; got {chunk!r}" in said


def test_a_loss_that_returns_a_vector(params):
    said = raised(lambda: plane(lambda p: p["Dense_0"]["bias"], params, params, params, [0], [0]))
    assert "plane needs a loss that returns one number; got shape (8,)" in said


def test_trees_that_differ(params, grads):
    short = {"Dense_0": params["Dense_0"]}
    said = raised(lambda: plane(square, params, grads, short, [0.0], [0.0]))
    assert "plane: y must be like the params: missing: 'Dense_1/bias'" in said
    said = raised(lambda: plane_through(params, short, grads))
    assert "plane_through: b must be like the params" in said
    said = raised(lambda: coordinates(plane_through(params, grads, _ones(params)), short))
    assert "coordinates: params must be like the params" in said


def _ones(tree):
    return jax.tree.map(jnp.ones_like, tree)


def test_lengths_in_half_precision_are_summed_in_float32():
    """70,000 ones, squared and summed, are inf in float16."""
    a, b, c = ({"w": jnp.zeros(70_000, jnp.float16).at[i].set(i)} for i in range(3))
    frame = plane_through(a, b, c)
    assert frame.x["w"].dtype == jnp.float16
    np.testing.assert_allclose(coordinates(frame, c), [0, 2, 0], atol=1e-3)
    ones = {"w": jnp.ones(70_000, jnp.float16)}
    far = coordinates(frame._replace(origin=a, x=ones, y=b), {"w": 2 * ones["w"]})
    np.testing.assert_allclose(far, [2, 0, 0], atol=1e-3)
