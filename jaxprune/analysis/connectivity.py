"""The loss along the straight line between two networks, and how high it rises there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Params, is_known
from jaxprune.losses import Loss
from jaxprune.trees import check_like, map_named, named_leaves

Path = Callable[[Params, Params, Any], Params]  # (a, b, alpha) -> params: a at 0, b at 1


def lerp(a: Params, b: Params, alpha: Any) -> Params:
    """The network on the line from `a` (alpha = 0) to `b` (alpha = 1).

        w = (1 - alpha) a + alpha b

    It is exactly `a` at 0, exactly `b` at 1, and exactly both where they are equal. So a weight
    that both networks prune is zero on the whole line, and a shared mask keeps its sparsity.
    Interpolate masked weights, not the latent weights of a straight-through method.

    Args:
      a, b: floating-point trees of the same structure and shapes; None stays None.
      alpha: a float scalar.

    Raises:
      ValueError: if the structures or shapes differ; it names the leaf.
      TypeError: if a leaf is not floating-point.

    >>> import jaxprune as jp
    >>> print(jp.analysis.lerp(-1.0, 3.0, 0.25))
    0.0
    """
    _check_alike(a, b)

    def between(leaf_name: str, x: Any, y: Any) -> jax.Array:
        x, y = jnp.asarray(x), jnp.asarray(y)
        dtype = jnp.result_type(x, y)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"lerp needs floating-point leaves; '{leaf_name}' is {dtype}. Interpolate the "
                "params alone, without masks, counters and keys."
            )
        wide = jnp.promote_types(dtype, jnp.float32)  # in bfloat16 there is no 0.1
        x, y, t = x.astype(wide), y.astype(wide), jnp.asarray(alpha).astype(wide)
        # from the nearer end, so that both ends are exact
        near = jnp.where(t < 0.5, x + t * (y - x), y - (1 - t) * (y - x))
        # for a difference that is not finite, such as that of two infinities
        far = jnp.where((t == 0) | (x == y), x, jnp.where(t == 1, y, (1 - t) * x + t * y))
        return jnp.where(jnp.isfinite(y - x), near, far).astype(dtype)

    return map_named(between, a, b)


def loss_along(
    loss: Loss, a: Params, b: Params, points: Any = 11, path: Path = lerp
) -> tuple[jax.Array, Any]:
    """The loss at evenly spaced points of the path from `a` to `b`: (alphas, values).

    One network at a time: outside `jax.jit` a compiled `loss` is called for each point, inside it a
    `lax.map` goes over the points.

    Args:
      loss: `params -> scalar` or `params -> {name: scalar}`, any tree of scalars. It is jitted, and
        compiled once for all networks of these shapes.
      a, b: the ends, trees like each other.
      points: how many alphas from 0 to 1, odd and at least 3, since the peak tends to be in the
        middle; or the alphas themselves, float (points,).
      path: `(a, b, alpha) -> params`; the straight line, or `partial(bezier, middle)`.

    Returns:
      The alphas, float32 (points,), and the tree that `loss` returns, with (points,) for a scalar.

    Raises:
      ValueError: if `points` is even or less than 3, `a` and `b` differ, or the loss is no scalar
        or not finite: it says at which alpha. (Under `jit` nan and inf are returned.)

    >>> import jaxprune as jp
    >>> jp.analysis.loss_along(lambda w: (w**2 - 1) ** 2, -1.0, 1.0, points=5)[1].tolist()
    [0.0, 0.5625, 1.0, 0.5625, 0.0]
    """
    _check_alike(a, b)
    alphas = _alphas(points)
    if not is_known((a, b, alphas)):
        values = lax.map(lambda alpha: _scalars(loss(path(a, b, alpha))), jnp.asarray(alphas))
        return jnp.asarray(alphas), values
    # jax.jit of the same function is the same program: nothing is compiled for the next pair
    at, networks = jax.jit(loss), jax.jit(path)
    values = [_scalars(at(networks(a, b, alpha))) for alpha in alphas]
    stacked = jax.tree.map(lambda *scalars: jnp.stack(scalars), *values)
    _check_finite(alphas, stacked)
    return jnp.asarray(alphas), stacked


def barrier(loss: Loss, a: Params, b: Params, points: Any = 11, path: Path = lerp) -> Any:
    """How high the loss on the line between two networks rises above the chord of their losses.

        B = max over alpha of L(lerp(a, b, alpha)) - (1 - alpha) L(a) - alpha L(b)

    It is at least 0, and exactly 0 for equal networks. The arguments are those of `loss_along`;
    alphas must start with 0 and end with 1. It misses a peak between two points.

    Running statistics of batch norm in `a` and `b` are interpolated with the params; the safer rule
    is a loss of `recalibrate(...)`. The barriers differ a lot: report the rule that you used.

    Returns:
      The tree that `loss` returns, with a barrier for each scalar.

    >>> import jaxprune as jp
    >>> float(jp.barrier(lambda w: (w**2 - 1) ** 2, -1.0, 1.0))
    1.0
    """
    alphas, values = loss_along(loss, a, b, _from_end_to_end(points), path)
    return jax.tree.map(lambda v: jnp.max(v - lerp(v[0], v[-1], alphas)), values)


def instability(loss: Loss, a: Params, b: Params, points: Any = 11, path: Path = lerp) -> Any:
    """How high the loss on the line between two networks rises above the mean of their losses.

        I = max over alpha of L(lerp(a, b, alpha)) - (L(a) + L(b)) / 2

    The paper's error barrier: two networks trained from one state with different SGD noise are
    stable if the error rises by less than 2 points. Unlike `barrier` it is above 0 where the loss
    only falls from one end to the other: report both. Arguments and result are those of `barrier`.

    Reference: Frankle et al., 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis.

    >>> import jaxprune as jp
    >>> loss = lambda w: w**2
    >>> float(jp.analysis.instability(loss, -0.5, 1.0)), float(jp.barrier(loss, -0.5, 1.0))
    (0.375, 0.0)
    """
    _, values = loss_along(loss, a, b, _from_end_to_end(points), path)
    return jax.tree.map(lambda v: jnp.max(v) - (v[0] + v[-1]) / 2, values)


def _alphas(points: Any) -> Any:
    """The points as float32 (points,): numpy if they are known, under `jit` too."""
    alphas: Any
    if not is_known(points):
        alphas = jnp.asarray(points, jnp.float32)
    elif isinstance(points, (bool, float, str)) or points is None:
        raise TypeError(f"points is an odd int, or an array of alphas; got {points!r}.")
    elif np.ndim(points) == 0:
        if points < 3 or points % 2 == 0:
            raise ValueError(
                "points must be odd, so that the middle is one of them, and at least 3; got "
                f"{points}. Take {max(3, int(points) + 1)}, or give the alphas as an array."
            )
        alphas = np.linspace(0, 1, int(points), dtype=np.float32)
    else:
        alphas = np.asarray(points, np.float32)
    if alphas.ndim != 1 or not alphas.size:
        raise ValueError(f"alphas are an array (points,); got one of shape {alphas.shape}.")
    return alphas


def _from_end_to_end(points: Any) -> Any:
    """`_alphas`, or ValueError unless they lead from 0 to 1 with some between."""
    alphas = _alphas(points)
    if is_known(alphas) and (len(alphas) < 3 or alphas[0] != 0 or alphas[-1] != 1):
        raise ValueError(
            "a barrier needs the loss at both ends and between them: alphas that start with 0 and "
            f"end with 1, at least 3; got {alphas.tolist()}."
        )
    return alphas


def _scalars(values: Any) -> Any:
    """The losses in floating point, or ValueError if one is no scalar."""

    def scalar(leaf_name: str, value: Any) -> jax.Array:
        if jnp.shape(value) != ():
            raise ValueError(
                f"the loss{_called(leaf_name)} must be a scalar; it has shape "
                f"{jnp.shape(value)}. Take its mean."
            )
        return jnp.asarray(value).astype(jnp.promote_types(jnp.result_type(value), jnp.float32))

    if not jax.tree.leaves(values):
        raise ValueError(f"the loss must be a scalar, or a tree of scalars; got {values!r}.")
    return map_named(scalar, values)


def _check_finite(alphas: np.ndarray, values: Any) -> None:
    for leaf_name, leaf in named_leaves(values):
        if not is_known(leaf):
            continue
        for alpha, value in zip(alphas, np.asarray(leaf), strict=True):
            if not np.isfinite(value):
                raise ValueError(
                    f"the loss{_called(leaf_name)} is {value} at alpha = {alpha:g}: there is no "
                    "barrier. At 0 or 1 that network has diverged; between them check the loss "
                    "for logarithms and divisions. Under jax.jit such values are returned."
                )


def _called(leaf_name: str) -> str:
    return f" '{leaf_name}'" if leaf_name else ""


def _check_alike(a: Params, b: Params) -> None:
    check_like("the second network", b, a, "Take both from one `init`, or from one stack.")
