"""The parts of an optimizer's state that are like the params: moments, accumulators, averages."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.base import Masks, Params
from jaxprune.masks import apply_masks
from jaxprune.programs.zero_flow import follow, run
from jaxprune.trees import is_none, named_leaves


def zero_pruned(opt_state: optax.OptState, masks: Masks, params: Params) -> optax.OptState:
    """`opt_state` with zeros where a mask is False, in every part that is a tree like `params`.

    A part is recognized by its structure and shapes, for any optimizer. `optax.tree.map_params`
    fails where `init` reads its params (labels by path, lbfgs). Factored moments (adafactor's rows
    and columns) have other shapes and stay.
    """
    leaves, treedef = jax.tree.flatten(opt_state)
    of_leaves = leaf_masks(opt_state, masks, params)
    return jax.tree.unflatten(treedef, map(_zero_where_pruned, leaves, of_leaves))


def sparse_update(
    inner: optax.GradientTransformationExtraArgs,
    grads: optax.Updates,
    opt_state: optax.OptState,
    params: Params,
    masks: Masks,
    extra: dict[str, Any],
    dense: bool = False,
) -> tuple[optax.Updates, optax.OptState]:
    """`inner.update` in a sparse network: its arguments and the new moments are zero where pruned.

    Gradients and moments are masked, and the params unless they are `dense`. Updates are not masked
    again. A moment is, if `inner` may write to its zeros: adafactor adds 1e-30, others add noise.
    `zero_flow` says why not all moments are, and what happens at 0 / 0.
    """
    rested = zero_pruned(opt_state, masks, params)
    given = (apply_masks(grads, masks), rested, params if dense else apply_masks(params, masks))
    of_params, of_state = _masks_of_leaves(masks, params), leaf_masks(rested, masks, params)
    leaf_of = {id(mask): leaf for leaf, mask in enumerate(of_params) if mask is not None}
    known = [*of_params, *of_state, *([None] * len(of_params) if dense else of_params)]
    flow = follow(
        lambda *args: inner.update(*args, **extra),
        [leaf_of.get(id(mask)) for mask in known],
        *given,
    )
    # where zeros stay zero, the optimizer itself is called
    updates, inner_state = (
        run(flow, of_params, *given) if flow.plan else inner.update(*given, **extra)
    )

    leaves, treedef = jax.tree.flatten(inner_state)
    of_leaves = leaf_masks(inner_state, masks, params)
    zero = flow.zero[len(flow.zero) - len(leaves) :]
    masked = [
        leaf if mask is None or leaf_of[id(mask)] == at else _zero_where_pruned(leaf, mask)
        for leaf, mask, at in zip(leaves, of_leaves, zero, strict=True)
    ]
    return updates, jax.tree.unflatten(treedef, masked)


def where_kept(
    new: optax.OptState, old: optax.OptState, masks: Masks, params: Params
) -> optax.OptState:
    """`new` where a mask is True or there is none, `old` where it is False."""
    leaves, treedef = jax.tree.flatten(new)
    rows = zip(leaves, jax.tree.leaves(old), leaf_masks(old, masks, params), strict=True)
    return jax.tree.unflatten(
        treedef, [a if mask is None else jnp.where(mask, a, b) for a, b, mask in rows]
    )


def _zero_where_pruned(leaf: Any, mask: Any) -> Any:
    return leaf if mask is None else jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def leaf_masks(opt_state: optax.OptState, masks: Masks, params: Params) -> list[Any]:
    """For every leaf of `opt_state` its mask, or None if it is not like a leaf of the params."""

    def structure(tree: Any) -> Any:
        return jax.tree.structure(tree, is_leaf=_is_masked_node)

    def is_like_params(part: Any) -> bool:
        return structure(part) == wanted

    wanted, rest = structure(params), iter(_masks_of_leaves(masks, params))
    # optax.masked leaves a node in the place of a leaf
    places = jax.tree.leaves(params, is_leaf=_is_masked_node)
    of_places = [None if _is_masked_node(place) else next(rest) for place in places]
    of_leaves: list[Any] = []
    for part in jax.tree.leaves(opt_state, is_leaf=is_like_params):
        if not is_like_params(part):
            of_leaves.append(None)
            continue
        leaves = jax.tree.leaves(part, is_leaf=_is_masked_node)
        for leaf, mask in zip(leaves, of_places, strict=True):
            if not _is_masked_node(leaf):
                fits = mask is not None and np.shape(leaf) == mask.shape
                of_leaves.append(mask if fits else None)
    return of_leaves


def _masks_of_leaves(masks: Masks, params: Params) -> list[Any]:
    """The masks, None included, in the order of `jax.tree.leaves(params)`."""
    pairs = zip(named_leaves(params), jax.tree.leaves(masks, is_leaf=is_none), strict=True)
    return [mask for (_, leaf), mask in pairs if leaf is not None]


def _is_masked_node(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
