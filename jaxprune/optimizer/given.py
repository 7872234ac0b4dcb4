"""The arguments of the wrappers of optax, checked; and their first masks."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import optax

from jaxprune.base import MaskTransform, Params, copied
from jaxprune.masks import kinds, mask_states
from jaxprune.trees import check_like


def first_masks(transform: MaskTransform, params: Params) -> Any:
    """The first state of a transform, copied: the training loop may donate it.

    `optax.tree_map_params` calls `init` on a placeholder to learn which parts of a state are like
    the params. Masks are not: they have None where a leaf is never pruned. The placeholder
    therefore gets one object that is no param in place of the state.
    """
    if type(params).__name__ == "_ParamsPlaceholder":
        return "mask_state"
    return copied(transform.init(params))


def check_given(what: str, grads: Any, state: Any, params: Params, kind: type) -> None:
    """Raises unless `state` is a `kind`, and there are params, and gradients like them.

    Raises:
      TypeError: for another state, such as that of the optimizer without masks.
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
            f"{kinds(state)}. To sparsify a training that ran without masks, put the state of its "
            "optimizer in: tx.init(params)._replace(inner_state=opt_state)."
        )
    check_like(f"{what}: the gradients", grads, params, _GRADIENTS, containers=False)


_GRADIENTS = (
    "Differentiate by all params, and hand over gradients and params of one tree: leaves that are "
    "not trained are for optax.masked or optax.partition. Gradients with an axis of examples are "
    "aggregated before: optax.chain(optax.contrib.differentially_private_aggregate(...), "
    "jp.sparsify(optax.sgd(0.1), transform)). With an axis of seeds, vmap over the params too."
)


def check_kinds(what: str, inner: Any, transform: Any) -> None:
    """TypeError unless these are an optimizer and a mask transform."""
    if not isinstance(transform, MaskTransform):
        swapped = isinstance(inner, MaskTransform)
        hint = " The optimizer comes first." if swapped else ""
        call = " Call it: it makes a transform." if callable(transform) else ""
        raise TypeError(
            f"{what} needs a mask transform, such as jp.prune(...), jp.fixed(masks) or "
            f"jp.every(n, ...); got {kind_of(transform)}.{hint}{call}"
        )
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"{what} needs an optax optimizer, such as optax.adam(1e-3); got {kind_of(inner)}."
            + (" Call it: it makes an optimizer." if inspect.isfunction(inner) else "")
            + (
                " Give it MultiSteps(...).gradient_transformation()."
                if isinstance(inner, optax.MultiSteps)
                else ""
            )
        )


def kind_of(thing: Any) -> str:
    """The name of a function, or of the type of anything else."""
    return getattr(thing, "__name__", None) or type(thing).__name__


def ranks_dense_weights(mask_state: Any) -> Any:
    """The part of a mask state that compares weights that stay dense; None if there is none."""

    def ranks_dense(node: Any) -> bool:
        return getattr(node, "ranks_dense_weights", False) is True

    nodes = jax.tree.leaves(mask_state, is_leaf=ranks_dense)
    return next((node for node in nodes if ranks_dense(node)), None)


def check_unmasked(what: str, inner_state: Any) -> None:
    """ValueError if an optimizer's state has masks already."""
    if any(mask_states(inner_state)):
        raise ValueError(
            f"the optimizer given to {what} already has masks. Wrap it once, with "
            "jp.chain(transform, ...) for several mask transforms."
        )
