"""Running statistics of batch norm for a network that was not trained: one between two others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import is_known
from jaxprune.trees import named_leaves, quoted

# An old statistic beside which the new one rounds away. A power of two: products with it are exact.
_HUGE = 2.0**100


def recalibrate(
    update: Callable[[Any, Any], Mapping[str, Any]], variables: Mapping[str, Any], batches: Any
) -> dict[str, Any]:
    """`variables` with running statistics that describe their own weights on these batches.

        statistic = mean over batches of the statistic of one batch

    Interpolated statistics do not describe an interpolated network. There are two rules: leave
    them as `lerp` makes them, which is what `barrier(loss, a, b)` of whole variables does; or this
    one, the safer: `barrier(lambda v: loss(recalibrate(update, v, batches)), a, b)`.

    A framework shows only the moving average, new = m old + (1 - m) batch. It is linear, so that
    the statistic of the batch is what it makes of old = 0, divided by 1 - m, and m is what it makes
    of an old that is huge: no momentum is asked for, and each layer may have its own.

    Args:
      update: `(variables, batch) -> changed collections`, one forward pass in training mode. With
        flax linen `lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[1]`.
      variables: by collection, such as `{"params": ..., "batch_stats": ...}`.
      batches: training data without augmentation, each leaf (batches, batch, ...), batches of equal
        size; some 2,000 examples in all.

    Returns:
      A dict like `variables`; integer statistics (counters) stay as they are. As in other
      libraries, each batch is normalized by itself and the variance between batches is left out.

    Raises:
      ValueError: if `update` changes nothing, such as a network not in training mode, or there are
        no batches.

    Reference: Garipov et al., 2018, Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs.
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or lengths in ({()}, {(0,)}):
        raise ValueError(
            "recalibrate needs batches whose leaves all have a leading axis of at least one batch; "
            f"got leading axes {sorted(lengths)}."
        )
    first = jax.tree.map(lambda leaf: leaf[0], batches)
    shapes = jax.eval_shape(update, variables, first)
    if not isinstance(shapes, Mapping) or not set(shapes) <= set(variables):
        seen = sorted(shapes) if isinstance(shapes, Mapping) else type(shapes).__name__
        raise ValueError(
            f"recalibrate: update returns the collections that it changes, some of "
            f"{sorted(variables)}; got {seen}. With flax linen it is the second result of "
            'model.apply(..., mutable=["batch_stats"]).'
        )
    if not any(_is_statistic(leaf) for leaf in jax.tree.leaves(shapes)):
        raise ValueError(
            "recalibrate: update returns no running statistics. Has the network batch norm, and "
            "is it in training mode?"
        )
    old = {collection: variables[collection] for collection in shapes}

    def after(start: float, batch: Any) -> dict[str, Any]:
        """The running statistics that `update` makes of ones that all are `start`."""
        fresh = jax.tree.map(lambda x: jnp.full_like(x, start) if _is_statistic(x) else x, old)
        return dict(update({**variables, **fresh}, batch))

    momentum = jax.tree.map(
        lambda x: x.astype(jnp.float32) / _HUGE if _is_statistic(x) else x, after(_HUGE, first)
    )
    _check_momentum(momentum)
    total, _ = lax.scan(
        lambda total, batch: (jax.tree.map(jnp.add, total, after(0.0, batch)), None),
        jax.tree.map(jnp.zeros_like, old),
        batches,
    )
    (batches_seen,) = lengths.pop()

    def mean(kept: Any, summed: Any, m: Any) -> Any:
        return (summed / batches_seen / (1 - m)).astype(kept.dtype) if _is_statistic(kept) else kept

    return {**variables, **jax.tree.map(mean, old, total, momentum)}


def _is_statistic(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _check_momentum(momentum: Any) -> None:
    """ValueError where a moving average is known not to move."""
    still = [
        (leaf_name, leaf)
        for leaf_name, leaf in named_leaves(momentum)
        if _is_statistic(leaf) and is_known(leaf) and not np.all(np.asarray(leaf) < 1)
    ]
    if still:
        raise ValueError(
            f"recalibrate: update leaves {quoted(still)} as before. Run the network in training "
            "mode, and return what it changed: train=True, mutable=['batch_stats']."
        )
