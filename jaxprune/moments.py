"""The parts of an optimizer's state that are like the params: moments, accumulators, averages."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.base import Masks, Params, is_none
from jaxprune.rules import named_leaves
from jaxprune.zero_flow import keeps_zeros


def zero_pruned(opt_state: optax.OptState, masks: Masks, params: Params) -> optax.OptState:
    """`opt_state` with zeros where a mask is False, in every part that is a tree like `params`.

    The parts are found by their structure and shapes, not by the optimizer's type, and not by
    `optax.tree.map_params`, which fails where `init` looks into its params (labels by path,
    lbfgs). Factored moments (adafactor's rows and columns) have other shapes and stay.
    """
    leaves, treedef = jax.tree.flatten(opt_state)
    own = _leaf_masks(opt_state, masks, params)
    return jax.tree.unflatten(treedef, map(_zero_where_pruned, leaves, own))


def zero_again(
    inner: optax.GradientTransformationExtraArgs,
    inner_state: optax.OptState,
    sparse: tuple[optax.Updates, optax.OptState, Params],
    masks: Masks,
    extra: dict[str, Any],
) -> optax.OptState:
    """The new `inner_state`, zeroed where `inner` may write although it saw only zeros there.

    Adafactor adds 1e-30 to its moments, others add noise; `zero_flow` says why not all are
    zeroed again.
    """
    _, old_state, params = sparse
    of_params = _masks_of_leaves(masks, params)
    own = (*of_params, *_leaf_masks(old_state, masks, params), *of_params)
    proven = keeps_zeros(
        lambda *args: inner.update(*args, **extra)[1], [mask is not None for mask in own], *sparse
    )
    leaves, treedef = jax.tree.flatten(inner_state)
    masked = zip(leaves, _leaf_masks(inner_state, masks, params), proven, strict=True)
    return jax.tree.unflatten(
        treedef,
        [leaf if done else _zero_where_pruned(leaf, mask) for leaf, mask, done in masked],
    )


def where_kept(
    new: optax.OptState, old: optax.OptState, masks: Masks, params: Params
) -> optax.OptState:
    """`new` where a mask is True or there is none, `old` where it is False."""
    leaves, treedef = jax.tree.flatten(new)
    own = _leaf_masks(old, masks, params)
    pairs = zip(leaves, jax.tree.leaves(old), own, strict=True)
    return jax.tree.unflatten(
        treedef, [a if mask is None else jnp.where(mask, a, b) for a, b, mask in pairs]
    )


def _zero_where_pruned(leaf: Any, mask: Any) -> Any:
    return leaf if mask is None else jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def _leaf_masks(opt_state: optax.OptState, masks: Masks, params: Params) -> list[Any]:
    """For every leaf of `opt_state` the mask it belongs to, else None."""

    def structure(tree: Any) -> Any:
        return jax.tree.structure(tree, is_leaf=_is_masked_node)

    def is_like_params(part: Any) -> bool:
        return structure(part) == wanted

    wanted, own = structure(params), iter(_masks_of_leaves(masks, params))
    # what optax.masked took out stands for a leaf, but is none
    places = jax.tree.leaves(params, is_leaf=_is_masked_node)
    of_places = [None if _is_masked_node(place) else next(own) for place in places]
    found: list[Any] = []
    for part in jax.tree.leaves(opt_state, is_leaf=is_like_params):
        if not is_like_params(part):
            found.append(None)
            continue
        leaves = jax.tree.leaves(part, is_leaf=_is_masked_node)
        for leaf, mask in zip(leaves, of_places, strict=True):
            if not _is_masked_node(leaf):
                fits = mask is not None and np.shape(leaf) == mask.shape
                found.append(mask if fits else None)
    return found


def _masks_of_leaves(masks: Masks, params: Params) -> list[Any]:
    """The masks, None included, in the order of `jax.tree.leaves(params)`."""
    pairs = zip(named_leaves(params), jax.tree.leaves(masks, is_leaf=is_none), strict=True)
    return [mask for (_, leaf), mask in pairs if leaf is not None]


def _is_masked_node(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
