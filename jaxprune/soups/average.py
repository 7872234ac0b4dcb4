"""Soups: the average of several networks, which costs as much as one of them.

optax averages along a single training. Stochastic weight averaging is the mean of the networks at
the ends of cycles n = 0, 1, ...; an exponential moving average takes every step:

    swa = optax.incremental_update(params, swa, 1 / (n + 1))           # swa of n = 0 is params
    ema = optax.ema(0.999)                                             # ema.init(params)
    averaged, ema_state = ema.update(params, ema_state)

In both, weights that a fixed mask prunes stay zero. After a mask changes, apply it to the average.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import Masks, Params, is_known
from jaxprune.exact.integers import average_of_integers
from jaxprune.masks import apply_masks
from jaxprune.trees import count_seeds, map_named, present_leaves


def soup(stack: Params, weights: Any = None, masks: Masks | None = None) -> Params:
    """The average of the members of a stack: like one of them, in its dtypes.

        w = sum over i of weights[i] * member[i]

    Where all members are equal, or one has weight 1, the average is exactly that member: what all
    members prune is exactly zero. A member of weight 0 does not count, even where it is nan. The
    average is computed in float32 at least; the average of integers, such as counters, is exact and
    then rounded. `softmax(a)` as weights makes a learned soup: it is differentiable in them.

    An averaged network has no running statistics: `analysis.recalibrate` makes them.

    Args:
      stack: params, each leaf with a leading axis of members; None stays None.
      weights: (members,), of sum 1; None for the mean.
      masks: shared by all members, or a stack of masks, one a member. Members are masked before
        they are averaged. Without masks, the soup of members that prune different weights keeps
        every weight that any of them keeps.

    Raises:
      ValueError: if the leaves have different numbers of members, or none; if the weights are not
        (members,) or known not to sum to 1; if masks are known to differ between members: it names
        the paths and the sparsity before and after.
      TypeError: if a leaf has no average, such as a mask.

    Reference: Wortsman et al., 2022, Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.soup({'w': jnp.array([[1., 0.], [2., 0.], [6., 0.]])})
    {'w': Array([3., 0.], dtype=float32)}
    """
    members = count_seeds(stack)
    if masks is not None:
        stack = _masked(stack, masks)
    if weights is None:
        weights = np.full(members, 1 / members)
    else:
        weights = weights if hasattr(weights, "shape") else np.asarray(weights, np.float64)
        _check_weights(weights, members)
    return map_named(partial(_average, weights), stack)


def _average(weights: Any, leaf_name: str, x: Any) -> jax.Array:
    x = jnp.asarray(x)
    integers = jnp.issubdtype(x.dtype, jnp.integer)
    if not (integers or jnp.issubdtype(x.dtype, jnp.inexact)):
        raise TypeError(
            f"soup: '{leaf_name}' is {x.dtype}, which has no average. Leave it out of the stack; "
            "give the masks of the members as masks=..."
        )
    if integers:
        return average_of_integers(weights, x)
    is_narrow = x.dtype.itemsize == 1  # float8, which promotes to nothing
    wide = jnp.float32 if is_narrow else jnp.promote_types(jnp.float32, x.dtype)
    share = jnp.asarray(weights).astype(wide).reshape(-1, *[1] * (x.ndim - 1))
    # relative to the member of most weight, so that equal members do not round
    center = lax.dynamic_index_in_dim(x, jnp.argmax(jnp.asarray(weights)))
    apart = jnp.where(x == center, 0, x.astype(wide) - center.astype(wide))  # inf - inf is nan
    change = jnp.where(share != 0, share * apart, 0).sum(0)
    return (center[0].astype(wide) + change).astype(x.dtype)


def _check_weights(weights: Any, members: int) -> None:
    if weights.shape != (members,):
        raise ValueError(
            f"soup: weights are one a member, ({members},); got shape {weights.shape}."
        )
    if not is_known(weights):
        return
    total = np.sum(np.asarray(weights, np.float64))
    if not abs(total - 1) < 1e-3:  # bfloat16 is allowed
        raise ValueError(
            f"soup: weights sum to 1; got a sum of {total:g}. Divide them by it, or take "
            "jax.nn.softmax of any numbers."
        )


def _masked(stack: Params, masks: Masks) -> Params:
    """The members under shared masks, or each under its mask of a stack."""
    shapes = {path: np.shape(leaf) for path, leaf in present_leaves(stack)}
    given = present_leaves(masks)
    one_each = all(np.shape(mask) == shapes.get(path) for path, mask in given)
    if one_each:
        _check_alike(given)
    return jax.vmap(apply_masks, in_axes=(0, 0 if one_each else None))(stack, masks)


def _check_alike(masks: list[tuple[str, Any]]) -> None:
    """ValueError where members are known to have different masks (members, ...)."""
    known = [(path, np.asarray(m) != 0) for path, m in masks if is_known(m)]
    lost = [
        f"'{path}' ({_sparsity(m)} in the members, {_sparsity(m.any(0))} in the soup)"
        for path, m in known
        if (m != m[:1]).any()
    ]
    if lost:
        flat = np.concatenate([m.reshape(len(m), -1) for _, m in known], axis=1)
        more = f", and {len(lost) - 12} more" if len(lost) > 12 else ""
        raise ValueError(
            f"soup: the members have different masks, and their average keeps what any of them "
            f"keeps: {', '.join(lost[:12])}{more}; in all a sparsity of {_sparsity(flat)} becomes "
            f"{_sparsity(flat.any(0))}. Train all members under one mask, with "
            "sparsify(optimizer, fixed(masks)); or call soup without masks, and prune the average."
        )


def _sparsity(mask: Any) -> str:
    return f"{1 - mask.mean():.4g}"
