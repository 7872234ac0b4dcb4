"""Running statistics of batch norm for a network between two others, which was never trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import is_known
from jaxprune.losses import count_batches
from jaxprune.trees import named_leaves, quoted

# The new statistic rounds away beside this one. It is a power of two: products are exact.
_HUGE = 2.0**100


def recalibrate(
    update: Callable[[Any, Any], Mapping[str, Any]], variables: Mapping[str, Any], batches: Any
) -> dict[str, Any]:
    """`variables` with running statistics that describe their own weights on these batches.

        statistic = mean over batches of the statistic of one batch

    Interpolated statistics do not describe an interpolated network. There are two rules. Either
    interpolate them: `barrier(loss, a, b)` of whole variables. Or measure them anew, the safer
    rule: `barrier(lambda v: loss(recalibrate(update, v, batches)), a, b)`.

    A framework shows only the moving average, new = m old + (1 - m) batch. From old = 0 it makes
    (1 - m) batch, and from a huge old it makes m old. So the momentum m is measured, and each layer
    may have another one.

    Args:
      update: `(variables, batch) -> changed collections`, one forward pass in training mode. With
        flax linen `lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[1]`.
      variables: by collection, such as `{"params": ..., "batch_stats": ...}`.
      batches: training data without augmentation, each leaf (batches, batch, ...), batches of one
        size; about 2,000 examples in total.

    Returns:
      A dict like `variables`; integer statistics (counters) stay as they are. As in other
      libraries, the variance between batches is left out: each batch is normalized by itself.

    Raises:
      ValueError: if `update` changes nothing, as outside of training mode, or there are no batches.

    Reference: Garipov et al., 2018, Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs.
    """
    n_batches = count_batches("recalibrate", batches)
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
        """The running statistics that `update` makes from `start`."""
        fresh = _map_statistics(lambda x: jnp.full_like(x, start), old)
        return dict(update({**variables, **fresh}, batch))

    momentum = _map_statistics(lambda x: x.astype(jnp.float32) / _HUGE, after(_HUGE, first))
    still = [
        (name, m)
        for name, m in named_leaves(momentum)
        if _is_statistic(m) and is_known(m) and not np.all(np.asarray(m) < 1)
    ]
    if still:
        raise ValueError(
            f"recalibrate: update leaves {quoted(still)} as before. Run the network in training "
            "mode, and return what it changed: train=True, mutable=['batch_stats']."
        )
    total, _ = lax.scan(
        lambda total, batch: (jax.tree.map(jnp.add, total, after(0.0, batch)), None),
        jax.tree.map(jnp.zeros_like, old),
        batches,
    )
    mean = lambda x, summed, m: (summed / n_batches / (1 - m)).astype(x.dtype)
    return {**variables, **_map_statistics(mean, old, total, momentum)}


def _map_statistics(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`f(leaf, *rest_leaves)` of floats; counters stay."""
    return jax.tree.map(lambda x, *xs: f(x, *xs) if _is_statistic(x) else x, tree, *rest)


def _is_statistic(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
