"""What a wrapper of optax is given, checked; and the first masks that it hands out."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxprune.base import MaskTransform, Params, copied
from jaxprune.masks import kinds
from jaxprune.prunable.rules import by_keys, named_leaves, quoted


def first_masks(transform: MaskTransform, params: Params) -> Any:
    """The first state of a transform, in arrays of its own, for whoever trains may donate it.

    `optax.tree_map_params` calls `init` on a placeholder to learn which parts of a state are like
    the params. Masks are not: they have None where a leaf is never pruned. All of a transform's
    state is then one thing that is no param.
    """
    if type(params).__name__ == "_ParamsPlaceholder":
        return "mask_state"
    return copied(transform.init(params))


def check_given(what: str, grads: Any, state: Any, params: Params, kind: type) -> None:
    """Raises unless `state` is a `kind`, and there are params, and gradients like them.

    Raises:
      TypeError: of another state, such as that of the optimizer without masks.
      ValueError: if there are no params, or the gradients lack a leaf, have one more, or one of
        another shape; it names the leaf.
    """
    if params is None:
        raise ValueError(
            f"{what} needs the params to prune them: call update(grads, state, params)."
        )
    if not all(hasattr(state, field) for field in kind._fields):  # type: ignore[attr-defined]
        raise TypeError(
            f"{what} needs a {kind.__name__}, as its init makes it; got a state of type "
            f"{kinds(state)}. To sparsify a training that ran without masks, start with "
            "tx.init(params) and put its state in place: "
            "tx.init(params)._replace(inner_state=opt_state)."
        )
    check_gradients(what, grads, params)


def check_gradients(what: str, grads: Any, params: Params) -> None:
    """ValueError unless the gradients have the leaves of the params, in their shapes."""
    slopes, missing = by_keys(grads), []
    for keys, (path, w) in zip(by_keys(params), named_leaves(params), strict=True):
        slope = slopes.pop(keys, None)
        if w is None:
            continue
        if slope is None:
            missing.append((path, w))
        elif np.shape(slope) != np.shape(w):
            raise ValueError(
                f"{what}: the gradient of '{path}' has shape {np.shape(slope)}, its parameter "
                f"{np.shape(w)}." + _way_out(np.shape(slope), np.shape(w))
            )
    if missing:
        raise ValueError(
            f"{what}: there is no gradient for {quoted(missing)}. Differentiate by all params; "
            "where some are not trained, leave them to optax.masked or optax.partition."
        )
    unknown = [("/".join(keys), slope) for keys, slope in slopes.items() if slope is not None]
    if unknown:
        raise ValueError(
            f"{what}: there are gradients for {quoted(unknown)}, and no such params. Hand over "
            "gradients and params of one tree."
        )


def _way_out(shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if shape[1:] == wanted:
        return (
            " Are these gradients by example? Aggregate them before: "
            "optax.chain(optax.contrib.differentially_private_aggregate(...), "
            "jp.sparsify(optax.sgd(0.1), transform)). Or by seed? Then vmap over the params too."
        )
    return " Hand over gradients and params of one tree."
