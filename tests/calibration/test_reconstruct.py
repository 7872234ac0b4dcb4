"""`reconstruct`: least squares under a mask, for every place that a weight has in a product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.calibration.reconstruct import solved
from tests.calibration.test_in_order import TOKENS, Network, batches, weights
from tests.quick import quick

reconstruct = jp.calibration.reconstruct


def half(params):
    """Params after magnitude pruning of each leaf by half, and their masks."""
    masks = jax.tree.map(lambda w: jnp.abs(w) > jnp.median(jnp.abs(w)), params)
    return jp.apply_masks(params, masks), masks


def least_squares(x, y, mask):
    """The matrix of least error under a mask, column by column."""
    made = np.zeros(mask.shape)
    for o in range(mask.shape[1]):
        rows = np.asarray(mask[:, o])
        made[rows, o] = np.linalg.lstsq(np.asarray(x)[:, rows], np.asarray(y[:, o]))[0]
    return made


def test_the_worked_example():
    """By hand: the mean squared error goes from .0050 to .0036."""
    x = jnp.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 0], [2, 0, 0]])
    dense, masks = {"w": jnp.array([[0.5], [0.1], [-0.4]])}, {"w": jnp.array([[1], [0], [1]]) > 0}
    fn, pruned = lambda p, x: x @ p["w"], jp.apply_masks(dense, masks)
    tuned = reconstruct(fn, dense, pruned, masks, [x[:2], x[2:]], damping=0)
    np.testing.assert_allclose(tuned["w"][:, 0], [0.5091, 0, -0.3545], atol=1e-4)
    error = lambda p: float(jnp.square(fn(p, x) - fn(dense, x)).mean())
    assert error(pruned) == pytest.approx(0.0050, abs=1e-6)
    assert error(tuned) == pytest.approx(0.0036, abs=5e-5)


def test_two_layers_as_by_hand():
    """The second layer sees the tuned first one, and aims at the dense network."""
    dense, xs = weights(a=(8, 24), b=(24, 10)), batches(50, 8)
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    params, masks = half(dense)
    tuned = reconstruct(fn, dense, params, masks, xs, steps=60, damping=0)
    x = jnp.concatenate(xs)
    a = least_squares(x, x @ dense["a"], masks["a"])
    np.testing.assert_allclose(tuned["a"], a, rtol=1e-3, atol=1e-4)
    b = least_squares(jnp.tanh(x @ a), fn(dense, x), masks["b"])
    np.testing.assert_allclose(tuned["b"], b, rtol=1e-3, atol=2e-3)
    error = lambda p: float(jnp.square(fn(p, x) - fn(dense, x)).sum())
    assert error(tuned) < 0.5 * error(params)


def convolved(p, x):
    return lax.conv_general_dilated(
        x.reshape(3, 4, 4, 2), p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


PLACES = {  # a program of one product, the shape of its leaf
    "rows": (lambda p, x: x @ p["w"].T, (7, 8)),
    "heads": (lambda p, x: jnp.einsum("ni,ihd->nhd", x, p["w"]), (8, 2, 3)),
    "out": (lambda p, x: jnp.einsum("nhd,hdo->no", x.reshape(12, 2, 4), p["w"]), (2, 4, 5)),
    "part": (lambda p, x: x @ jnp.split(p["w"], [3], axis=1)[1], (8, 9)),
    "experts": (lambda p, x: jnp.einsum("eni,eio->eno", x.reshape(2, 6, 8), p["w"]), (2, 8, 3)),
    "convolution": (convolved, (3, 3, 2, 4)),
    "scan": (lambda p, x: lax.scan(lambda h, w: (h, h @ w), x, p["w"])[1], (2, 8, 5)),
}


@pytest.mark.parametrize("place", quick(PLACES))
def test_an_error_never_grows_and_zeros_stay(place):
    fn, shape = PLACES[place]
    dense, xs = weights(w=shape), batches(12, 8, n=2)
    params, masks = half(dense)
    tuned = reconstruct(fn, dense, params, masks, xs)
    assert not np.any(np.asarray(tuned["w"])[~np.asarray(masks["w"])])
    error = lambda p: sum(float(jnp.square(fn(p, x) - fn(dense, x)).sum()) for x in xs)
    assert error(tuned) < 0.95 * error(params)


@pytest.mark.parametrize("steps", [1, 2, 300])
@pytest.mark.parametrize("rank", [0, 3, 12])
def test_an_error_never_grows_by_rounding(rank, steps):
    """Few steps, steps long after the end, and second moments that are singular, or all zero."""
    rng = np.random.default_rng(rank)
    x = (rng.normal(size=(40, rank)) @ rng.normal(size=(rank, 12))).astype(np.float32)
    weight, y = rng.normal(size=(12, 6)).astype(np.float32), rng.normal(size=(40, 6))
    mask = rng.random((12, 6)) < 0.5
    mask[:, 0] = False
    start = np.where(mask, weight, 0)
    made = solved(x.T @ x, jnp.asarray(x.T @ y, jnp.float32), start, mask, steps, 0.0)
    assert np.isfinite(made).all() and not np.any(np.asarray(made)[~mask])
    error = lambda w: np.square(x.astype(float) @ np.asarray(w, float) - y).sum(0)
    assert (error(made) <= error(start) * (1 + 1e-6)).all()
    again = solved(x.T @ x, jnp.asarray(x.T @ y, jnp.float32), made, mask, steps, 0.0)
    assert (error(again) <= error(made) * (1 + 1e-6)).all()


def test_damping_stays_near_the_pruned_weights():
    dense, xs = weights(w=(8, 5)), batches(12, 8)
    params, masks = half(dense)
    fn = lambda p, x: x @ p["w"]
    moved = [
        float(
            jnp.abs(reconstruct(fn, dense, params, masks, xs, damping=d)["w"] - params["w"]).max()
        )
        for d in (0, 1, 1e6)
    ]
    assert moved[0] > 1.5 * moved[1] and moved[2] < 1e-4


def test_a_shared_leaf_is_tuned_once():
    """At its first product, and the second reads it tuned."""
    dense, xs = weights(a=(6, 6)), batches(20, 6)
    params, masks = half(dense)
    once = reconstruct(lambda p, x: x @ p["a"], dense, params, masks, xs)
    twice = reconstruct(lambda p, x: jnp.tanh(x @ p["a"]) @ p["a"], dense, params, masks, xs)
    np.testing.assert_array_equal(once["a"], twice["a"])


@pytest.mark.full
def test_a_module_by_its_kernels():
    """Other leaves stay; structure and dtypes too; also under jit."""
    module = Network()
    dense = module.init(jax.random.key(0), TOKENS[0])["params"]
    dense = jax.tree.map(lambda x: x.astype(jnp.bfloat16), dense)
    fn = lambda p, tokens: module.apply({"params": p}, tokens)
    params, masks = jp.calibration.prune_in_order(fn, dense, TOKENS, jp.calibration.wanda(0.5))
    run = lambda dense, params: reconstruct(fn, dense, params, masks, TOKENS)
    tuned = run(dense, params)
    kind = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert kind(tuned) == kind(params)
    np.testing.assert_array_equal(tuned["Embed_0"]["embedding"], dense["Embed_0"]["embedding"])
    kernel, mask = tuned["Dense_0"]["kernel"], masks["Dense_0"]["kernel"]
    assert not np.any(np.asarray(kernel, float)[~np.asarray(mask)])
    assert np.any(kernel != params["Dense_0"]["kernel"])
    again = jax.jit(run)(dense, params)["Dense_0"]["kernel"]
    np.testing.assert_allclose(np.asarray(again, float), np.asarray(kernel, float), atol=0.02)


def test_clear_errors():
    dense, xs = weights(a=(6, 5)), batches(4, 6)
    params, masks = half(dense)
    fn = lambda p, x: x @ p["a"]

    def raised(fn=fn, dense=dense, masks=masks, xs=xs, **how):
        with pytest.raises(ValueError) as error:
            reconstruct(fn, dense, params, masks, xs, **how)
        return str(error.value)

    assert "reconstruct: batches is empty" in raised(xs=[])
    assert "reconstruct: batch 1 is float32 (3, 6)" in raised(xs=[xs[0], xs[0][:3]])
    bad = [xs[0], xs[0].at[0, 0].set(jnp.nan)]
    assert "reconstruct: the inputs of 'a' have nan or inf in batch 1" in raised(xs=bad)
    assert "steps is a whole number, at least 1; got 0" in raised(steps=0)
    assert "damping is a number, 0 or more; got -1" in raised(damping=-1)
    assert "damping is a number, 0 or more; got nan" in raised(damping=float("nan"))
    assert "reconstruct: dense must be like the params" in raised(dense={"a": jnp.ones((2, 2))})
    assert "these masks must be like the params" in raised(masks={"b": masks["a"]})
    assert "masks are bool" in raised(masks={"a": jnp.ones((6, 5))})
    branch = lambda p, x: jax.lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: 0 * x[:, :5])
    assert "reconstruct reaches no product of 'a'" in raised(fn=branch)
