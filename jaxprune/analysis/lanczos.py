"""The Hessian's spectrum by Lanczos: its largest eigenvalues, and the density of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxprune.analysis.hessian import dimension, operator, rademacher
from jaxprune.base import Masks, Params, is_int, is_known
from jaxprune.losses import Loss, as_partial, scan
from jaxprune.masks import apply_masks


class Eigenpairs(NamedTuple):
    """The largest eigenvalues, in falling order.

    Attributes:
      values: float32 (k,).
      vectors: like the params with a leading axis (k,), of length 1, orthogonal.
      errors: float32 (k,): an eigenvalue lies within this distance of each value, up to rounding
        of the products.
    """

    values: jax.Array
    vectors: Params
    errors: jax.Array


class Spectrum(NamedTuple):
    """Point masses that stand for the eigenvalues of the Hessian, a row for each probe.

    Attributes:
      nodes: float32 (probes, steps), rising in each row.
      weights: float32 (probes, steps), summing to 1 in each row.
      dimension: the number of eigenvalues, which is the number of kept weights.
    """

    nodes: jax.Array
    weights: jax.Array
    dimension: Any


class Tridiagonal(NamedTuple):
    """T = `basis^T A basis`, for a symmetric A.

    Attributes:
      diagonal, off_diagonal: float32 (steps,). The last entry of off_diagonal leads out of T.
      basis: like the vectors with a leading axis (steps,), orthonormal.
    """

    diagonal: jax.Array
    off_diagonal: jax.Array
    basis: Params


def hessian_eigenvalues(
    key: jax.Array,
    loss: Loss,
    params: Params,
    k: int = 1,
    steps: int = 50,
    masks: Masks | None = None,
    *,
    unroll: bool = False,
) -> Eigenpairs:
    """The k largest eigenvalues of the Hessian, by Lanczos with full reorthogonalization.

    The largest by value, not by magnitude. For the most negative eigenvalues, negate those of
    `lambda params: -loss(params)`.

    Args:
      key: draws the first vector.
      loss, params, masks: as for `hvp`. With masks, the eigenvalues over the kept weights.
      k: how many eigenvalues, at most `steps`.
      steps: how many Hessian-vector products, and vectors like the params in memory; at most the
        number of kept weights. `errors` tells whether they were enough.
      unroll: drive the steps from Python, where convolutions on CPU are slow inside a loop.

    Raises:
      ValueError: if k or steps do not fit, the loss returns no scalar, the trees differ, or the
        Hessian is not finite here.

    Reference: Golub and Van Loan, 2013, Matrix Computations, chapter 10.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> A = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    >>> pairs = jp.analysis.hessian_eigenvalues(
    ...     jax.random.key(0), lambda w: w @ A @ w / 2, jnp.zeros(2), k=2, steps=2)
    >>> [round(float(value), 3) for value in pairs.values]
    [3.618, 1.382]
    """
    _check_steps("hessian_eigenvalues", steps, dimension(params, masks))
    if not is_int(k, 1) or k > steps:
        raise ValueError(f"hessian_eigenvalues finds 1 to steps={steps} of them; got k={k!r}.")
    product = operator("hessian_eigenvalues", loss, params, masks)
    first, restarts = jax.random.split(key)
    start = _masked(optax.tree.random_like(first, params), masks)
    pairs = _ritz(lanczos(restarts, product, start, steps, masks, unroll=unroll))
    _check_finite("hessian_eigenvalues", pairs.values)
    return jax.tree.map(lambda x: x[:k], pairs)


def hessian_spectrum(
    key: jax.Array,
    loss: Loss,
    params: Params,
    probes: int = 5,
    steps: int = 50,
    masks: Masks | None = None,
    *,
    unroll: bool = False,
) -> Spectrum:
    """The density of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

        density = mean over probes of sum_i (u_i1)^2 delta(theta_i),   T = U diag(theta) U^T

    with T from Lanczos on a random vector of +-1. Smooth it with `spectral_density`. The trace is
    about `dimension * mean over probes of sum_i weights_i nodes_i`.

    Args:
      probes: random vectors to average over.
      key, loss, params, steps, masks, unroll: as for `hessian_eigenvalues`.

    Raises:
      ValueError: as `hessian_eigenvalues`.

    Reference: Ghorbani, Krishnan and Xiao, 2019, An Investigation into Neural Net Optimization via
    Hessian Eigenvalue Density.
    """
    size = dimension(params, masks)
    _check_steps("hessian_spectrum", steps, size)
    if not is_int(probes, 1):
        raise ValueError(f"hessian_spectrum: probes must be at least 1; got {probes!r}.")
    product = operator("hessian_spectrum", loss, params, masks)
    rows = []
    for probe_key in jax.random.split(key, probes):
        first, restarts = jax.random.split(probe_key)
        start = _masked(rademacher(first, params), masks)
        rows.append(_quadrature(lanczos(restarts, product, start, steps, masks, unroll=unroll)))
    nodes, weights = (jnp.stack(parts) for parts in zip(*rows, strict=True))
    _check_finite("hessian_spectrum", nodes)
    return Spectrum(nodes, weights, size)


def spectral_density(spectrum: Spectrum, grid: Any, width: float) -> jax.Array:
    """The density of eigenvalues at each point of `grid`, each drawn as a Gaussian: (points,).

        density(t) = mean over probes of sum_i weights_i N(t; nodes_i, width^2)

    It integrates to 1. With a width below the distance between nodes it shows single nodes.

    Raises:
      ValueError: if the width is not positive.
    """
    if is_known(width) and not width > 0:
        raise ValueError(f"spectral_density: width is a standard deviation, above 0; got {width}.")
    off = (jnp.asarray(grid, jnp.float32)[:, None, None] - spectrum.nodes[None]) / width
    bells = jnp.exp(-0.5 * jnp.square(off)) / (width * np.sqrt(2 * np.pi))
    return jnp.sum(spectrum.weights[None] * bells, -1).mean(-1)


def lanczos(
    key: jax.Array,
    product: Callable[[Params], Params],
    start: Params,
    steps: int,
    masks: Masks | None = None,
    *,
    unroll: bool = False,
) -> Tridiagonal:
    """Lanczos with full reorthogonalization, on trees.

        q_1 = start / |start|,   alpha_j = <q_j, A q_j>,   r = A q_j - its part in q_1 .. q_j,
        beta_j = |r|,   q_{j+1} = r / beta_j

    If r vanishes, q_1 .. q_j span an invariant subspace. Then beta_j is 0, and the next vector is a
    random one orthogonal to them: T falls into blocks and stays exact, with multiplicities.

    Args:
      key: draws the vectors after such a breakdown.
      product: `v -> A v`, symmetric, from trees like `start` to trees like it.
      start: the first vector, not zero; of any length.
      steps: at most the dimension of the space: the number of kept weights.
      masks: where False, A and start are zero, and the random vectors too.
    """
    zeros = jax.tree.map(lambda x: jnp.zeros((steps, *jnp.shape(x)), jnp.float32), start)
    first = _unit(optax.tree.cast(start, jnp.float32))
    product, like = as_partial(product), jax.tree.map(jnp.zeros_like, start)
    keys = jax.random.split(key, steps)
    carry = (zeros, first, jnp.zeros(()))
    carry, (diagonal, off_diagonal) = scan(
        _step, (product, like, masks), carry, (jnp.arange(steps), keys), unroll
    )
    return Tridiagonal(diagonal, off_diagonal, carry[0])


def _step(context: Any, carry: Any, x: Any) -> tuple[Any, Any]:
    product, like, masks = context
    basis, q, scale = carry  # scale: the largest entry of T so far, about |A|
    j, key = x
    basis = jax.tree.map(lambda rows, x: rows.at[j].set(x), basis, q)
    r = optax.tree.cast(product(optax.tree.cast_like(q, like)), jnp.float32)
    alpha = optax.tree.vdot(q, r)
    r = _orthogonal(basis, _orthogonal(basis, r))  # twice is enough (Kahan)
    beta = optax.tree.norm(r)
    scale = jnp.maximum(scale, jnp.maximum(jnp.abs(alpha), beta))
    broken = beta <= 10 * jnp.finfo(jnp.float32).eps * scale
    fresh = _masked(optax.tree.random_like(key, r), masks)
    # no turns without a breakdown; three after one, since little may remain of the vector
    fresh = lax.fori_loop(
        0, jnp.where(broken, 3, 0), lambda _, v: _unit(_orthogonal(basis, v)), fresh
    )
    following = optax.tree.where(broken, fresh, _unit(r))
    return (basis, following, scale), (alpha, jnp.where(broken, 0.0, beta))


@jax.jit
def _ritz(tridiagonal: Tridiagonal) -> Eigenpairs:
    """The eigenpairs of T, for A; the error of each is |beta_last u_last|, or rounding."""
    theta, u = (x[..., ::-1] for x in _eigh(tridiagonal))
    vectors = jax.tree.map(
        lambda q: jnp.tensordot(u.T, q, 1, precision=lax.Precision.HIGHEST), tridiagonal.basis
    )
    rounding = 10 * jnp.finfo(jnp.float32).eps * jnp.abs(theta).max()
    errors = jnp.maximum(jnp.abs(tridiagonal.off_diagonal[-1] * u[-1]), rounding)
    return Eigenpairs(theta, vectors, errors)


@jax.jit
def _quadrature(tridiagonal: Tridiagonal) -> tuple[jax.Array, jax.Array]:
    theta, u = _eigh(tridiagonal)
    return theta, jnp.square(u[0])


def _eigh(tridiagonal: Tridiagonal) -> Any:
    alpha, beta = tridiagonal.diagonal, tridiagonal.off_diagonal[:-1]
    return jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1))


def _orthogonal(basis: Params, v: Params) -> Params:
    """`v` without its part in the rows of the basis (orthonormal, or zero)."""
    highest = lax.Precision.HIGHEST
    parts = [
        jnp.tensordot(rows, x, x.ndim, precision=highest)
        for rows, x in zip(jax.tree.leaves(basis), jax.tree.leaves(v), strict=True)
    ]
    along = jnp.stack(parts).sum(0)
    return jax.tree.map(
        lambda rows, x: x - jnp.tensordot(along, rows, 1, precision=highest), basis, v
    )


def _unit(v: Params) -> Params:
    length = optax.tree.norm(v)
    return optax.tree.scale(1 / jnp.where(length > 0, length, 1), v)


def _masked(v: Params, masks: Masks | None) -> Params:
    return v if masks is None else apply_masks(v, masks)


def _check_steps(what: str, steps: Any, size: Any) -> None:
    if not is_int(steps, 1):
        raise ValueError(f"{what}: steps must be at least 1; got {steps!r}.")
    if is_known(size) and steps > size:
        raise ValueError(
            f"{what}: {steps} steps of Lanczos in a space of {size:,} kept weights: after "
            f"{size:,} there is no direction left. Ask for steps={min(steps, size)} or fewer."
        )


def _check_finite(what: str, values: jax.Array) -> None:
    if is_known(values) and not np.isfinite(values).all():
        raise ValueError(
            f"{what}: the Hessian-vector products are not finite. Look at loss(params) and its "
            "gradient there: nan and inf in the loss, or overflow in half precision."
        )
