"""Hessian-vector products, diagonal and trace: the quadratic of the card, and `jax.hessian`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxprune as jp
from jaxprune.analysis import hessian_diagonal, hessian_trace, hvp, over_batches
from tests.quick import quick

A = jnp.array([[2.0, 1.0], [1.0, 3.0]])


def quadratic(w):
    return w @ A @ w / 2


@pytest.fixture
def data():
    x = jax.random.normal(jax.random.key(2), (6, 5, 4))
    return x, jax.random.randint(jax.random.key(3), (6, 5), 0, 2)


def of_batch(params, batch):
    """Cross-entropy of a two-layer net of 58 weights."""
    x, y = batch
    h = jnp.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None])
    logits = h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@pytest.fixture
def loss(data):
    return over_batches(of_batch, data)


def dense_hessian(loss, params, masks=None):
    """The matrix, by jax; with masks, that of `loss(masked params)`."""
    flat, unravel = ravel_pytree(params)
    of = lambda w: loss(unravel(w) if masks is None else jp.apply_masks(unravel(w), masks))
    return jax.hessian(of)(flat)


def flat(tree):
    return ravel_pytree(tree)[0]


# --- products ------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("masked", quick([True, False]))
def test_products_equal_those_of_the_whole_hessian(loss, params, grads, masks, masked):
    given = masks if masked else None
    got = flat(hvp(loss, params, grads, given))
    want = dense_hessian(loss, params, given) @ flat(grads)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_card():
    for z, expected in (((1.0, 1.0), [3.0, 4.0]), ((1.0, -1.0), [1.0, 2.0])):
        z = jnp.array(z)
        np.testing.assert_array_equal(z * hvp(quadratic, jnp.zeros(2), z), expected)


def test_what_is_pruned_stays_zero_and_does_not_matter(loss, params, grads, masks):
    product = hvp(loss, params, grads, masks)
    for name in ("Dense_0", "Dense_1"):
        assert not product[name]["kernel"][~masks[name]["kernel"]].any()
    same = hvp(loss, jp.apply_masks(params, masks), jp.apply_masks(grads, masks), masks)
    jax.tree.map(np.testing.assert_array_equal, product, same)


def test_through_a_function_without_forward_mode(loss, params, grads):
    @jax.custom_vjp
    def square(x):
        return x * x

    square.defvjp(lambda x: (square(x), x), lambda x, dy: (2 * x * dy,))
    cubic = lambda p: sum(jnp.sum(square(w) * w) for w in jax.tree.leaves(p))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(cubic, (params,), (grads,))
    got = hvp(cubic, params, grads)
    want = jax.tree.map(lambda w, v: 6 * w * v, params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def test_under_vmap_it_equals_a_loop(loss, params, grads, masks):
    stack = jax.tree.map(lambda w, g: jnp.stack([w, g, w + g]), params, grads)
    v = jax.tree.map(lambda w: jnp.stack([w, w, -w]), params)
    lanes = jax.jit(jax.vmap(lambda w, v: hvp(loss, w, v, masks)))(stack, v)
    for i in range(3):
        w, vector = (jax.tree.map(lambda x, i=i: x[i], tree) for tree in (stack, v))
        one = hvp(loss, w, vector, masks)
        np.testing.assert_allclose(
            flat(jax.tree.map(lambda x, i=i: x[i], lanes)), flat(one), rtol=1e-4, atol=1e-5
        )


def test_a_loss_is_traced_once(params, grads):
    traced = []

    def loss(p):
        traced.append(1)
        return sum(jnp.sum(w**3) for w in jax.tree.leaves(p))

    hvp(loss, params, grads)
    first = len(traced)
    hvp(loss, grads, params)
    assert len(traced) == first


# --- probes --------------------------------------------------------------------------------------


def test_the_mean_over_all_signs_is_exact():
    signs = [jnp.array(z) for z in itertools.product((1.0, -1.0), repeat=2)]
    samples = [z * hvp(quadratic, jnp.zeros(2), z) for z in signs]
    np.testing.assert_array_equal(jnp.stack(samples).mean(0), [2.0, 3.0])
    assert sorted({float(s.sum()) for s in samples}) == [3.0, 7.0]  # mean 5, the trace


def test_probes_of_the_card_take_its_two_values():
    # 7 with n of 40 probes, 3 with the others
    mean, error = hessian_trace(jax.random.key(0), quadratic, jnp.zeros(2), 40)
    n = float((mean - 3) / 4 * 40)
    assert n == pytest.approx(round(n), abs=1e-3) and 8 < n < 32
    variance = 16 * (n / 40) * (1 - n / 40) * 40 / 39
    assert float(error) == pytest.approx(np.sqrt(variance / 40), rel=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("masked", quick([True, False]))
@pytest.mark.parametrize("unroll", [False, True])
def test_estimates_are_within_their_errors(loss, params, masks, masked, unroll):
    given = masks if masked else None
    hessian = dense_hessian(loss, params, given)
    trace = hessian_trace(jax.random.key(1), loss, params, 200, given, unroll=unroll)
    assert abs(trace.mean - jnp.trace(hessian)) < 4 * trace.standard_error
    assert trace.standard_error < 0.2 * jnp.trace(hessian)
    diagonal = hessian_diagonal(jax.random.key(1), loss, params, 200, given, unroll=unroll)
    off = flat(diagonal.mean) - jnp.diag(hessian)
    np.testing.assert_array_less(jnp.abs(off), 5 * flat(diagonal.standard_error) + 1e-5)
    # the documented error: off-diagonal mass over sqrt(probes)
    mass = jnp.sqrt((hessian**2).sum(1) - jnp.diag(hessian) ** 2) / np.sqrt(200)
    np.testing.assert_allclose(flat(diagonal.standard_error), mass, rtol=0.3, atol=1e-5)
    # the same probes: the diagonal sums to the trace
    np.testing.assert_allclose(flat(diagonal.mean).sum(), trace.mean, rtol=1e-4)


def test_a_diagonal_hessian_is_found_exactly():
    w = jnp.array([1.0, 2.0, -3.0])
    mean, error = hessian_diagonal(jax.random.key(0), lambda w: jnp.sum(w**4), w, 2)
    np.testing.assert_allclose(mean, 12 * w**2, rtol=1e-6)
    np.testing.assert_allclose(error, 0.0, atol=1e-4)


def test_the_error_of_a_diagonal_is_that_of_a_mean_by_hand():
    """H = [[0, 1], [1, 0]]: each sample of either entry is z_0 z_1, +1 or -1, of variance

    sum (x - mean)^2 / (probes - 1) = probes (1 - mean^2) / (probes - 1)
    """
    loss = lambda w: w[0] * w[1]
    mixed = 0
    for seed in range(6):
        mean, error = hessian_diagonal(jax.random.key(seed), loss, jnp.ones(2), 4)
        np.testing.assert_allclose(error, jnp.sqrt((1 - mean**2) / 3), rtol=1e-5, atol=1e-6)
        mixed += int(jnp.abs(mean[0]) < 1)
    assert mixed


def test_two_keys_two_estimates(loss, params):
    a, b, same = (hessian_trace(jax.random.key(k), loss, params, 4).mean.item() for k in (0, 1, 0))
    assert a != b and a == same


def test_unrolled_probes_are_the_same(loss, params):
    a, b = (
        hessian_trace(jax.random.key(0), loss, params, 5, unroll=unroll).mean
        for unroll in (False, True)
    )
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_stack_of_seeds(loss, params, grads, masks):
    stack = jax.tree.map(lambda w, g: jnp.stack([w, g]), params, grads)
    both = jax.tree.map(lambda m: jnp.stack([m, ~m]), masks)
    f = lambda w, m: hessian_trace(jax.random.key(0), loss, w, 3, m).mean
    lanes = jax.jit(jax.vmap(f))(stack, both)
    inverse = jax.tree.map(jnp.logical_not, masks)
    np.testing.assert_allclose(lanes, [f(params, masks), f(grads, inverse)], rtol=1e-4)


# --- bad input -----------------------------------------------------------------------------------


def raised(f, kind=ValueError):
    with pytest.raises(kind) as error:
        f()
    return str(error.value)


def test_a_loss_that_is_no_number(params):
    said = raised(lambda: hvp(lambda p: p["Dense_0"]["bias"], params, params))
    assert "needs a loss that returns one number; got shape (8,)" in said
    assert "vmap over it" in said
    said = raised(lambda: hvp(lambda p: {"loss": jnp.zeros(())}, params, params))
    assert "got dict of 1. Choose one: lambda params: loss(params)['loss']" in said
    said = raised(lambda: hvp(3.0, params, params), TypeError)
    assert "a loss is a function of the params" in said and "got float" in said


def test_a_loss_with_a_type_error_says_so(params):
    def broken(p):
        return jnp.sum(p["Dense_0"]["kernel"] + "1")

    assert "str" in raised(lambda: hvp(broken, params, params), TypeError)


def test_vectors_that_do_not_fit(loss, params):
    short = {"Dense_0": params["Dense_0"]}
    assert "hvp: v must be like the params: missing: 'Dense_1/bias'" in raised(
        lambda: hvp(loss, params, short)
    )
    other = jax.tree.map(lambda w: w[None], params)
    said = raised(lambda: hvp(loss, params, other))
    assert "has shape (1, 8), wanted (8,)" in said and "vmap over both" in said


def test_integer_params(params):
    said = raised(lambda: hvp(quadratic, {"count": jnp.arange(2)}, {"count": jnp.arange(2)}))
    assert "'count' is int32, which has no derivative" in said


def test_masks_that_are_none(loss, params, masks):
    gates = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
    said = raised(lambda: hvp(loss, params, params, gates), TypeError)
    assert "masks are bool arrays, True = kept; got float32" in said
    assert "missing: " in raised(lambda: hvp(loss, params, params, {"Dense_0": masks["Dense_0"]}))


@pytest.mark.parametrize("probes", [0, 1, -3, 2.5, True, None])
def test_too_few_probes(probes):
    for f in (hessian_trace, hessian_diagonal):
        said = raised(lambda f=f: f(jax.random.key(0), quadratic, jnp.zeros(2), probes))
        assert "at least 2 (one has no standard error)" in said and f"got {probes!r}" in said
