"""What a wrapper of optax is given, checked; and the first masks that it hands out."""

from __future__ import annotations

from typing import Any

from jaxprune.base import MaskTransform, Params, copied
from jaxprune.masks import kinds
from jaxprune.trees import check_like


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
    check_like(f"{what}: the gradients", grads, params, _GRADIENTS, containers=False)


_GRADIENTS = (
    "Differentiate by all params, and hand over gradients and params of one tree: leaves that are "
    "not trained are for optax.masked or optax.partition. Gradients with an axis of examples are "
    "aggregated before: optax.chain(optax.contrib.differentially_private_aggregate(...), "
    "jp.sparsify(optax.sgd(0.1), transform)). With an axis of seeds, vmap over the params too."
)
