"""Eigenvalues and spectral densities against numpy's: known spectra, and a small network's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxprune.analysis import (
    hessian_eigenvalues,
    hessian_spectrum,
    hvp,
    over_batches,
    spectral_density,
)
from jaxprune.analysis.lanczos import _quadrature, lanczos
from tests.analysis.test_hessian import dense_hessian, of_batch, quadratic, raised
from tests.quick import quick

KEY = jax.random.key(0)
EIGENVALUES = [3.618034, 1.381966]  # of [[2, 1], [1, 3]]


def symmetric(eigenvalues):
    """A matrix with these eigenvalues, and half its quadratic form."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))
    a = jnp.asarray((q * np.asarray(eigenvalues)) @ q.T, jnp.float32)
    return a, lambda w: w @ a @ w / 2


@pytest.fixture
def loss():
    x = jax.random.normal(jax.random.key(2), (6, 5, 4))
    return over_batches(of_batch, (x, jax.random.randint(KEY, (6, 5), 0, 2)))


# --- eigenvalues ---------------------------------------------------------------------------------


def test_the_eigenvalues_of_the_card():
    pairs = hessian_eigenvalues(KEY, quadratic, jnp.zeros(2), k=2, steps=2)
    np.testing.assert_allclose(pairs.values, EIGENVALUES, rtol=1e-6)
    np.testing.assert_array_less(pairs.errors, 1e-5)


@pytest.mark.full
@pytest.mark.parametrize("masked", quick([True, False]))
@pytest.mark.parametrize("unroll", [False, True])
def test_the_largest_of_a_network_equal_numpy(loss, params, masks, masked, unroll):
    given = masks if masked else None
    eigenvalues = np.linalg.eigvalsh(dense_hessian(loss, params, given))[::-1]
    pairs = hessian_eigenvalues(KEY, loss, params, 4, 25, given, unroll=unroll)
    np.testing.assert_allclose(pairs.values, eigenvalues[:4], rtol=1e-4)
    np.testing.assert_array_less(pairs.errors, 1e-3)
    # the most negative ones
    lowest = hessian_eigenvalues(KEY, lambda p: -loss(p), params, 1, 25, given)
    np.testing.assert_allclose(-lowest.values, eigenvalues[-1:], rtol=1e-3)


def test_vectors_are_eigenvectors_in_the_kept_weights(loss, params, masks):
    pairs = hessian_eigenvalues(KEY, loss, params, 3, 25, masks)
    rows = jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors)
    np.testing.assert_allclose(rows @ rows.T, jnp.eye(3), atol=1e-5)
    for i in range(3):
        v = jax.tree.map(lambda x, i=i: x[i], pairs.vectors)
        product = ravel_pytree(hvp(loss, params, v, masks))[0]
        np.testing.assert_allclose(product, pairs.values[i] * rows[i], atol=1e-3)
        assert not v["Dense_0"]["kernel"][~masks["Dense_0"]["kernel"]].any()


def test_errors_bound_the_distance_to_an_eigenvalue():
    a, form = symmetric(np.linspace(-1, 1, 60) ** 3)
    eigenvalues = np.linalg.eigvalsh(a)
    pairs = hessian_eigenvalues(KEY, form, jnp.zeros(60), 12, 12)
    distance = np.abs(np.asarray(pairs.values)[:, None] - eigenvalues[None]).min(1)
    assert (distance <= np.asarray(pairs.errors) + 1e-5).all()
    assert pairs.errors.max() > 1e-3  # 12 steps are too few for all of them, and it says so


def test_all_steps_give_all_eigenvalues():
    wanted = np.array([5.0, 3, 2, 1, 0.5, 0.1, 0, -0.2, -1, -4])
    _, form = symmetric(wanted)
    pairs = hessian_eigenvalues(KEY, form, jnp.zeros(10), 10, 10)
    np.testing.assert_allclose(pairs.values, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "wanted",
    [
        [1.0] * 8,  # the first vector is invariant
        [0.0] * 8,
        [3.0, 3, 3, 3, -1, -1, -1, -1],  # after two
        [7.0, 2, 0, 0, 0, 0, 0, 0],  # of low rank
        [1e-6, 1e-7, 0, 0, 0, 0, 0, 0],
        [1e6, 1e6, 1, 1, 0, 0, -1e6, -1e6],
    ],
)
def test_after_a_breakdown_it_finds_eigenvalues_with_their_multiplicity(wanted):
    _, form = symmetric(wanted)
    pairs = hessian_eigenvalues(KEY, form, jnp.zeros(8), 8, 8)
    scale = max(np.abs(wanted))
    np.testing.assert_allclose(pairs.values, wanted, atol=1e-6 * scale)
    assert (pairs.errors <= 1e-5 * scale).all()


def test_the_basis_stays_orthogonal():
    # without reorthogonalization a large outlier comes back as a ghost
    a, _ = symmetric([1000.0, *np.linspace(0, 1, 199)])
    start = jax.random.normal(KEY, (200,))
    t = lanczos(KEY, lambda v: a @ v, start, 60)
    np.testing.assert_allclose(t.basis @ t.basis.T, jnp.eye(60), atol=1e-5)
    projected = t.basis @ a @ t.basis.T
    np.testing.assert_allclose(jnp.diag(projected), t.diagonal, atol=2e-3)


def test_of_params_in_half_precision():
    w = jnp.zeros(2, jnp.bfloat16)
    a = jnp.array([[2.0, 1.0], [1.0, 3.0]], jnp.bfloat16)
    pairs = hessian_eigenvalues(KEY, lambda w: w @ a @ w / 2, w, 2, 2)
    assert pairs.values.dtype == jnp.float32
    np.testing.assert_allclose(pairs.values, EIGENVALUES, rtol=3e-2)


@pytest.mark.full
def test_a_stack_of_seeds(loss, params, grads, masks):
    stack = jax.tree.map(lambda w, g: jnp.stack([w, g]), params, grads)
    f = lambda w, m: hessian_eigenvalues(KEY, loss, w, 2, 10, m).values
    both = jax.tree.map(lambda m: jnp.stack([m, m]), masks)
    lanes = jax.jit(jax.vmap(f))(stack, both)
    loop = jnp.stack([f(params, masks), f(grads, masks)])
    np.testing.assert_allclose(lanes, loop, rtol=1e-4)


# --- spectral density ----------------------------------------------------------------------------


def test_the_quadrature_of_the_card():
    product = lambda v: jnp.array([[2.0, 1.0], [1.0, 3.0]]) @ v
    nodes, weights = _quadrature(lanczos(KEY, product, jnp.array([1.0, 0.0]), 2))
    np.testing.assert_allclose(nodes, EIGENVALUES[::-1], rtol=1e-6)
    np.testing.assert_allclose(weights, [0.7236, 0.2764], atol=5e-5)


def test_probes_of_the_card_give_traces_7_and_3():
    spectrum = hessian_spectrum(KEY, quadratic, jnp.zeros(2), probes=8, steps=2)
    traces = 2 * (spectrum.weights * spectrum.nodes).sum(1)
    assert {round(float(t), 4) for t in traces} == {7.0, 3.0}
    assert spectrum.dimension == 2


@pytest.mark.full
@pytest.mark.parametrize("masked", quick([True, False]))
def test_moments_of_a_network(loss, params, masks, masked):
    given = masks if masked else None
    hessian = dense_hessian(loss, params, given)
    spectrum = hessian_spectrum(KEY, loss, params, 60, 15, given)
    n_kept = 58 - 24 * masked
    assert spectrum.dimension == n_kept
    assert spectrum.nodes.shape == spectrum.weights.shape == (60, 15)
    np.testing.assert_allclose(spectrum.weights.sum(1), 1, rtol=1e-5)
    for power in (1, 2):
        samples = n_kept * (spectrum.weights * spectrum.nodes**power).sum(1)
        wanted = jnp.trace(jnp.linalg.matrix_power(hessian, power))
        assert abs(samples.mean() - wanted) < 4 * samples.std() / np.sqrt(60)


def test_a_breakdown_leaves_the_weights_exact():
    _, form = symmetric([3.0] * 4 + [-1.0] * 4)
    spectrum = hessian_spectrum(KEY, form, jnp.zeros(8), 3, 8)
    near = jnp.abs(spectrum.nodes - 3) < 1e-4
    assert (near | (jnp.abs(spectrum.nodes + 1) < 1e-4)).all()
    # tr A = z^T A z for the part of each probe
    above = jnp.where(near, spectrum.weights, 0).sum(1)
    traces = 8 * (3 * above - (1 - above))
    np.testing.assert_allclose(
        traces, 8 * (spectrum.weights * spectrum.nodes).sum(1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("unroll", [False, True])
def test_the_smoothed_density(unroll):
    spectrum = hessian_spectrum(KEY, quadratic, jnp.zeros(2), 4, 2, unroll=unroll)
    grid = jnp.linspace(0, 5, 501)
    density = spectral_density(spectrum, grid, 0.1)
    assert density.shape == (501,)
    assert float(density.sum() * 0.01) == pytest.approx(1, abs=1e-3)
    mean = float((density * grid).sum() * 0.01)
    assert mean == pytest.approx(float((spectrum.weights * spectrum.nodes).sum(1).mean()), abs=1e-3)
    peak = spectrum.weights.mean(0).max() / (0.1 * np.sqrt(2 * np.pi))
    assert float(density.max()) == pytest.approx(float(peak), rel=1e-2)


def test_two_keys_two_spectra(loss, params):
    a, b, same = (hessian_spectrum(jax.random.key(k), loss, params, 1, 5).nodes for k in (0, 1, 0))
    assert (a != b).any()
    np.testing.assert_array_equal(a, same)


# --- bad input -----------------------------------------------------------------------------------


def test_steps_above_the_dimension(params, masks):
    loss = lambda p: sum(jnp.sum(w**2) for w in jax.tree.leaves(p))
    for f in (hessian_eigenvalues, hessian_spectrum):
        said = raised(lambda f=f: f(KEY, loss, params, 1, 59))
        assert "59 steps of Lanczos in a space of 58 kept weights" in said
        assert "Ask for steps=58 or fewer" in said
        said = raised(lambda f=f: f(KEY, loss, params, 1, 50, masks))
        assert "in a space of 34 kept weights" in said


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None])
def test_steps_that_are_none(steps):
    for f in (hessian_eigenvalues, hessian_spectrum):
        said = raised(lambda f=f: f(KEY, quadratic, jnp.zeros(2), 1, steps))
        assert f"steps must be at least 1; got {steps!r}" in said


@pytest.mark.parametrize("k", [0, 3, 1.5, True])
def test_more_eigenvalues_than_steps(k):
    said = raised(lambda: hessian_eigenvalues(KEY, quadratic, jnp.zeros(2), k, 2))
    assert f"finds 1 to steps=2 of them; got k={k!r}" in said


def test_no_probes():
    said = raised(lambda: hessian_spectrum(KEY, quadratic, jnp.zeros(2), 0, 2))
    assert "probes must be at least 1; got 0" in said


def test_a_width_that_is_none():
    spectrum = hessian_spectrum(KEY, quadratic, jnp.zeros(2), 1, 2)
    said = raised(lambda: spectral_density(spectrum, jnp.zeros(3), 0.0))
    assert "width is a standard deviation, above 0; got 0.0" in said


@pytest.mark.full
def test_a_loss_that_is_nan():
    root = lambda w: jnp.sum(jnp.sqrt(w))
    for f in (hessian_eigenvalues, hessian_spectrum):
        said = raised(lambda f=f: f(KEY, root, -jnp.ones(3), 1, 2))
        assert f"{f.__name__}: the Hessian-vector products are not finite" in said
