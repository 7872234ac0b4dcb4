"""Curvature without a Hessian: its products with vectors, and its diagonal and trace by probing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.tree_util import Partial

from jaxprune.base import Masks, Params, is_int, is_known, is_mask
from jaxprune.losses import Estimate, Loss, as_partial, check_loss, scan
from jaxprune.masks import apply_masks, like
from jaxprune.trees import check_like, named_leaves


def hvp(loss: Loss, params: Params, v: Params, masks: Masks | None = None) -> Params:
    """The Hessian of the loss times a vector, at about the cost of two gradients.

        H v = d/dt grad loss(params + t v)  at t = 0;   with masks, M H M v at the masked params

    For data in batches see `over_batches`. On accelerators that round matrix products to fewer
    bits, wrap it in `jax.default_matmul_precision("highest")`.

    Args:
      loss: `params -> scalar`.
      params, v: trees alike, floating point.
      masks: like the params, bool, None where never pruned; None for no masks at all. The product
        is zero where a mask is False.

    Returns:
      A tree like the params.

    Raises:
      ValueError: if the loss returns no scalar, or the trees differ; it names the leaf.

    Reference: Pearlmutter, 1994, Fast Exact Multiplication by the Hessian.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> A = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    >>> jp.analysis.hvp(lambda w: w @ A @ w / 2, jnp.zeros(2), jnp.array([1.0, 1.0])).tolist()
    [3.0, 4.0]
    """
    check_like("hvp: v", v, params)
    return _product(*operator("hvp", loss, params, masks).args, v)


def hessian_trace(
    key: jax.Array,
    loss: Loss,
    params: Params,
    probes: int,
    masks: Masks | None = None,
    *,
    unroll: bool = False,
) -> Estimate:
    """The sum of the Hessian's eigenvalues, by Hutchinson's probes: float32 scalars.

        tr H = E z^T H z,   z = +-1 with equal chance

    Args:
      key: draws the probes.
      loss, params, masks: as for `hvp`. With masks, the trace over the kept weights: to compare
        masks, keep equally many weights, or divide by their number.
      probes: at least 2. The error falls with their square root.
      unroll: drive the probes from Python, where convolutions on CPU are slow inside a loop.

    Raises:
      ValueError: if there are fewer than 2 probes, the loss returns no scalar, or trees differ.

    Reference: Hutchinson, 1990, A stochastic estimator of the trace of the influence matrix for
    Laplacian smoothing splines.
    """
    _check_probes("hessian_trace", probes)
    product = operator("hessian_trace", loss, params, masks)
    keys = jax.random.split(key, probes)
    _, samples = scan(_trace_probe, (product, params), None, keys, unroll)
    return Estimate(samples.mean(), samples.std(ddof=1) / np.sqrt(probes))


def hessian_diagonal(
    key: jax.Array,
    loss: Loss,
    params: Params,
    probes: int,
    masks: Masks | None = None,
    *,
    unroll: bool = False,
) -> Estimate:
    """The diagonal of the Hessian, by Hutchinson's probes: trees like the params, float32.

        diag H = E z * H z,   z = +-1 with equal chance

    The error of entry i is sqrt(sum_{j != i} H_ij^2 / probes). Arguments and errors are those of
    `hessian_trace`.

    Reference: Bekas, Kokiopoulou and Saad, 2007, An estimator for the diagonal of a matrix.
    """
    _check_probes("hessian_diagonal", probes)
    product = operator("hessian_diagonal", loss, params, masks)
    zeros = optax.tree.zeros_like(params, dtype=jnp.float32)
    keys = jax.random.split(key, probes)
    (_, mean, squares), _ = scan(
        _diagonal_probe, (product, params), (jnp.zeros(()), zeros, zeros), keys, unroll
    )
    error = jax.tree.map(lambda m2: jnp.sqrt(m2 / (probes - 1) / probes), squares)
    return Estimate(mean, error)


# --- the Hessian as an operator ------------------------------------------------------------------


def operator(what: str, loss: Loss, params: Params, masks: Masks | None) -> Partial:
    """`v -> H v`, as a pytree that `jit` takes; compiled once for each loss."""
    for leaf_name, leaf in named_leaves(params):
        if leaf is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"{what}: '{leaf_name}' is {jnp.result_type(leaf)}, which has no derivative. "
                "Close the loss over it, and pass the floating-point params only."
            )
    for mask in jax.tree.leaves(masks):
        if not is_mask(mask):
            raise TypeError(
                f"{what}: masks are bool arrays, True = kept; got "
                f"{getattr(mask, 'dtype', type(mask).__name__)}."
            )
    loss = as_partial(loss)
    if masks is not None:
        loss = Partial(_masked_loss, loss, masks)
    return Partial(_product, loss, params)


def dimension(params: Params, masks: Masks | None) -> Any:
    """How many weights are kept: an int, or an int32 scalar if masks are traced."""
    if masks is None:
        return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
    masks = like(masks, params)
    pairs = zip(named_leaves(params), named_leaves(masks), strict=True)
    n_kept = sum(
        np.size(leaf) if mask is None else jnp.sum(mask, dtype=jnp.int32)
        for (_, leaf), (_, mask) in pairs
        if leaf is not None
    )
    return int(n_kept) if is_known(n_kept) else n_kept


def rademacher(key: jax.Array, params: Params) -> Params:
    """+1 or -1 for each weight, with equal chance, in its dtype."""
    signs = optax.tree.random_like(key, params, jax.random.rademacher, dtype=jnp.int8)
    return optax.tree.cast_like(signs, params)


def _masked_loss(loss: Any, masks: Masks, params: Params) -> Any:
    # by the chain rule the masks act on the vector and on the product
    return loss(apply_masks(params, masks))


@jax.jit
def _product(loss: Any, params: Params, v: Params) -> Params:
    check_loss("the Hessian", loss, params)
    gradient = jax.grad(loss)
    if _has_reverse_rules(jax.make_jaxpr(gradient)(params).jaxpr):
        # H is symmetric, so reverse mode gives the same, in more memory
        return jax.vjp(gradient, params)[1](v)[0]
    return jax.jvp(gradient, (params,), (v,))[1]


def _has_reverse_rules(jaxpr: Jaxpr) -> bool:
    """Whether it calls a function with a custom reverse rule, which has no forward mode."""
    return any(
        eqn.primitive.name.startswith("custom_vjp_call")
        or any(_has_reverse_rules(inner) for inner in jaxprs_in_params(eqn.params))
        for eqn in jaxpr.eqns
    )


def _trace_probe(context: Any, carry: None, key: jax.Array) -> tuple[None, jax.Array]:
    product, params = context
    z = rademacher(key, params)
    return carry, _dot(z, product(z))


def _diagonal_probe(context: Any, carry: Any, key: jax.Array) -> tuple[Any, None]:
    product, params = context
    n, mean, squares = carry
    z = rademacher(key, params)
    sample = jax.tree.map(lambda z, hz: (z * hz).astype(jnp.float32), z, product(z))
    # Welford: no difference of large sums
    off = optax.tree.sub(sample, mean)
    mean = jax.tree.map(lambda m, d: m + d / (n + 1), mean, off)
    squares = jax.tree.map(lambda s, d, x, m: s + d * (x - m), squares, off, sample, mean)
    return (n + 1, mean, squares), None


def _dot(a: Params, b: Params) -> jax.Array:
    return optax.tree.vdot(*(optax.tree.cast(tree, jnp.float32) for tree in (a, b)))


def _check_probes(what: str, probes: Any) -> None:
    if not is_int(probes, 2):
        raise ValueError(
            f"{what}: probes is how many random vectors to average, at least 2 (one has no "
            f"standard error); got {probes!r}."
        )
