"""Penalties on gates and on the scales of norms, and what keeps their values in bounds.

Network slimming and polarization prune by the scales of norms. Continuous relaxation learns gates
that are sigmoids, `continuous_sparsification(5.0, inf)` of logits that start at 1. A stage of
training lowers the logits by the relative cost (`structured.relaxed_cost`); then `ejector` drives
the lowered gates away from 1/2. The next stage cuts the gates under a threshold, a little higher
each time, and trains on. Larson, Upadhyaya, McDermott and Ganju, 2023, A Generalization of
Continuous Relaxation in Structured Pruning.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Masks, Params
from jaxprune.gates.gate import Gates, Logits, check_positive
from jaxprune.masks import like
from jaxprune.trees import map_scored, named_leaves, quoted, with_leaves


def slimming(scales: Params, masks: Masks | None = None) -> jax.Array:
    """The sum of |scale|: float32 scalar. Times a strength of 1e-5 to 1e-4, added to the loss.

    Its gradient is sign(scale), and 0 at 0. Exempt scales from weight decay, or the two mix. A
    channel whose scale is 0 is a constant, its bias.

    With masks it is MaskSparsity: the sum over the scales where the mask is False, which are to be
    pruned; the others have a gradient of exactly 0. Choose the masks on a network trained with
    `slimming`, start again from its dense twin (strength 5e-4), and prune |scale| <= 0.01.

    Args:
      scales: such as `matching('*/scale')(params)`; None leaves count nothing.
      masks: bool, True = kept, like `scales`; None penalizes all.

    Raises:
      ValueError: if the masks belong to other params.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> scales, masks = {'scale': jnp.array([3., -2.])}, {'scale': jnp.array([True, False])}
    >>> float(jp.gates.slimming(scales)), float(jp.gates.slimming(scales, masks))
    (5.0, 2.0)

    References: Liu et al., 2017, Learning Efficient Convolutional Networks through Network
    Slimming; Jiang et al., 2023, Pruning-aware Sparse Regularization for Network Pruning.
    """
    sizes = map_scored(_magnitude, scales)
    if masks is not None:
        sizes = map_scored(lambda x, m: jnp.where(m, 0.0, x), sizes, like(masks, scales))
    return _sum(sizes)


def polarization(gates: Any, t: float = 1.0, alpha: float = 1.0) -> jax.Array:
    """The polarization of gates: t |gates|_1 - |gates - alpha mean|_1, the mean over all; a scalar.

    Smallest where each gate is 0 or at the upper end, at a fraction that `t` sets. Scales of norms
    are such gates too, kept in [0, 1] (`box`).

    Args:
      gates: pytree of floats; None leaves count nothing.
      t: how strong the pull of all to zero is beside that away from the mean.
      alpha: what multiplies the mean.

    Raises:
      ValueError: if t is not above 0.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> [round(float(jp.gates.polarization(jnp.array(x), t=1.2)), 4) for x in ([.5, .5], [0., 1.])]
    [1.2, 0.2]

    Reference: Zhuang et al., 2020, Neuron-level Structured Pruning using Polarization Regularizer.
    """
    check_positive("polarization", "t", t)
    n = sum(x.size for x in jax.tree.leaves(gates))
    mean = alpha * _sum(gates) / max(n, 1)
    away = map_scored(lambda g: _magnitude(g - mean), gates)
    return t * _sum(map_scored(_magnitude, gates)) - _sum(away)


def box(low: float, high: float) -> optax.GradientTransformation:
    """Clips the updates so that params + updates lies in [low, high]; last in an `optax.chain`.

    The L0 code keeps logits in [log 0.01, log 100], that of polarization scales in [0, 1].

    Raises:
      ValueError: unless low < high; (in update) if `params` is missing.
    """
    if not low < high:
        raise ValueError(f"gates.box needs low < high; got {low} and {high}.")

    def update(updates: Any, state: Any, params: Params = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("gates.box needs the params: call update(grads, state, params).")
        boxed = lambda u, w: jnp.clip(w + u, low, high).astype(u.dtype) - w
        return jax.tree.map(boxed, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def keep_strongest(gates: Gates, only: Collection[str] | None = None) -> Gates:
    """`gates` with each leaf divided by its largest: the strongest gate of each leaf is always 1.

    The gradient flows through the maximum. Gates that share a cost may otherwise all close, which
    a norm after them hides until they are cut.

    Args:
      gates: pytree of floats in [0, 1], such as {group: (size,)}; None leaves stay None.
      only: the paths of the leaves to divide, the others stay; None for all.

    Raises:
      ValueError: if `only` names a leaf that is not there.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.gates.keep_strongest({'a': jnp.array([.5, .25]), 'b': jnp.array([.5])}, only=['a'])
    {'a': Array([1. , 0.5], dtype=float32), 'b': Array([0.5], dtype=float32)}
    """
    leaves = named_leaves(gates)
    if unknown := set(only or ()) - {path for path, _ in leaves}:
        raise ValueError(
            f"gates.keep_strongest: there are no gates of {sorted(unknown)}; there are "
            f"{quoted(leaves)}."
        )

    def leaf(path: str, f: Any) -> Any:
        if f is None or (only is not None and path not in only):
            return f
        return f / jnp.maximum(jnp.max(f), jnp.finfo(f.dtype).tiny)

    return with_leaves(gates, [leaf(path, f) for path, f in leaves])


def ejector(logits: Logits, rho: Any = 1.0, kept: Any = None) -> jax.Array:
    """How undecided gates are: a float32 scalar, 1 if all logits are 0, 0 if all are far away.

        b = exp(-(s / (2 rho^2))^2),   ejector = sqrt(mean of b^2 over all gates)

    A bump at s = 0, where a sigmoid is 1/2, with standard deviation sqrt(2) rho^2. Add it to the
    loss only once the cost has moved the gates (`cubic_ramp`): from the start it holds them where
    they are, above 0.

    Args:
      logits: pytree of floats; None leaves count nothing.
      rho: above 0; may be traced.
      kept: bool, like the logits: the gates that still count. None for all.

    Raises:
      ValueError: if rho is not above 0.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> round(float(jp.gates.ejector({'a': jnp.array([1., .2]), 'b': jnp.array([-.4, -.9])})), 4)
    0.8912

    Reference: the code of the first author, Larson, 2023 (github.com/bhlarson/mllib).
    """
    check_positive("ejector", "rho", rho)
    if kept is None:
        kept = map_scored(lambda s: jnp.ones_like(s, bool), logits)
    counted = map_scored(
        lambda s, m: jnp.where(m, jnp.exp(-2 * (s / (2 * rho**2)) ** 2), 0.0), logits, kept
    )
    n = _sum(map_scored(lambda m: m.astype(jnp.float32), kept))
    mean = _sum(counted) / jnp.maximum(n, 1.0)
    return jnp.sqrt(jnp.maximum(mean, jnp.finfo(jnp.float32).tiny))  # no slope of 1 / 0


def cubic_ramp(begin: float, end: float) -> optax.Schedule:
    """From 0 at step `begin` to 1 at `end`: clip((step - begin) / (end - begin), 0, 1)^3.

    Raises:
      ValueError: unless begin < end.

    >>> import jaxprune as jp
    >>> float(jp.gates.cubic_ramp(24, 25)(24.5))
    0.125
    """
    if not begin < end:
        raise ValueError(f"cubic_ramp needs begin < end; got {begin} and {end}.")

    def schedule(step: Any) -> jax.Array:
        return jnp.clip((jnp.asarray(step, jnp.float32) - begin) / (end - begin), 0.0, 1.0) ** 3

    return schedule


def _magnitude(x: jax.Array) -> jax.Array:
    """|x|, with gradient sign(x): that of `jnp.abs` is 1 at 0, and would move pruned scales."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def _sum(tree: Params) -> jax.Array:
    """The sum of all entries of all leaves, in float32."""
    return sum((jnp.sum(x, dtype=jnp.float32) for x in jax.tree.leaves(tree)), jnp.float32(0))
