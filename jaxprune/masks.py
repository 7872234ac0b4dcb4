"""Masks: apply them, find them in optimizer states, count them, compare them.

Masks are a pytree like the params: bool, True = kept, None where a leaf is never pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.base import Masks, Params, is_mask
from jaxprune.prunable.layers import folded, has_layers, split_like
from jaxprune.prunable.quantized import dequantized, has_quantized
from jaxprune.prunable.quantized import masked as masked_quantized
from jaxprune.selection.counting import n_true
from jaxprune.sharding import sharded_like
from jaxprune.trees import by_keys, is_none, map_scored, named_leaves, unlike


def apply_masks(params: Params, masks: Masks) -> Params:
    """`params` with exact zeros where a mask is False; where it is None, unchanged.

    A floating-point mask (a gate) multiplies, and may broadcast against its parameter. Masks and
    params are matched by the keys of their paths, so that masks found in the state of an
    `nnx.Optimizer`, or in nested dicts restored from it, apply to an `nnx.State`. In a kernel that
    another library has quantized, the codes of pruned weights become the code of zero.

    Raises:
      ValueError: if the paths or the shapes differ; it names the leaf.
      TypeError: if a gate multiplies a leaf that is no float, as where masks are given as params.
    """
    if has_quantized(params):
        return masked_quantized(
            params, like(masks, dequantized(params)), partial(_masked, "a leaf")
        )
    in_layers = has_layers(masks) and not has_layers(params)
    if in_layers and not _are_bool(masks):  # gates may be smaller than the weights of a layer
        split = split_like(params, masks)
        masked = map_scored(lambda w, m: _masked("of a layer", w, m), split, masks)
        return merged(params, masked)
    aligned, treedef = _aligned(masks, params)
    leaves = [
        leaf if mask is None else _masked(leaf_name, leaf, mask)
        for (leaf_name, leaf), mask in aligned
    ]
    return jax.tree.unflatten(treedef, leaves)


def like(masks: Masks, params: Params) -> Masks:
    """`masks` in the tree structure of `params`, matched by path; None where there is no mask.

    Raises:
      ValueError: if the paths or the shapes differ; it names the leaf.
    """
    aligned, treedef = _aligned(masks, params)
    for (leaf_name, leaf), mask in aligned:
        if mask is not None and np.shape(mask) != np.shape(leaf):
            raise _shapes_differ(leaf_name, leaf, mask)
    return jax.tree.unflatten(treedef, [mask for _, mask in aligned])


def all_kept(params: Params) -> Masks:
    """Masks like `params` that keep every weight: bool arrays, all True, laid out like the params.

    Args:
      params: arrays or `jax.ShapeDtypeStruct`; where a leaf is None, its mask is None. `kernels`
        chooses the leaves: `all_kept(kernels(params))`.

    >>> import jax.numpy as jnp
    >>> all_kept({'kernel': jnp.zeros((1, 2)), 'bias': None})
    {'bias': None, 'kernel': Array([[ True,  True]], dtype=bool)}
    """
    return map_scored(lambda w: sharded_like(jnp.ones_like(w, dtype=bool), w), params)


def prunable_parts(
    prunable: Callable[[Params], Params], masks: Masks, params: Params, grads: Params = None
) -> tuple[Masks, Params, Params]:
    """Masks, weights and gradients of the prunable leaves; None elsewhere.

    In a chain, other transforms prune other leaves. The parts have layers in place of stacks, as
    `prunable` gives them; a layer is not copied out of its stack (`deferred.Layer`). `merged` is
    the way back.
    """
    masks = split_like(like(masks, params), prunable(params), deferred=True)
    part = lambda tree: None if tree is None else split_like(tree, masks, deferred=True)
    return masks, part(params), part(grads)


def merged(tree: Any, part: Any) -> Any:
    """`tree` with the leaves of `part` that are not None, matched by path; stacks are folded."""
    return jax.tree.map(
        lambda old, new: old if new is None else new, tree, like(part, tree), is_leaf=is_none
    )


def get_masks(opt_state: Any) -> Masks:
    """The masks in an optimizer's state, however nested, and also in a bare orbax restore of one.

    Raises:
      ValueError: if the state has no masks, or more than one tree of them.
    """
    states = list(mask_states(opt_state))
    if not states:
        raise ValueError(
            "this optimizer state has no masks. Make the optimizer with "
            "jaxprune.sparsify(optimizer, transform), or keep_dense or train_only in its place; "
            f"got a state of type {kinds(opt_state)}."
        )
    if len(states) > 1:
        places = " and ".join(f"'{place or '(root)'}'" for place, _ in states)
        raise ValueError(
            f"this optimizer state has {len(states)} trees of masks, at {places}. Call get_masks "
            "on the one you mean."
        )
    masks = _field(states[0][1], "masks")
    return jax.tree.map(lambda m: None if _is_hole(m) else m, masks, is_leaf=_is_hole)


def sparsity(masks: Masks) -> jax.Array:
    """The fraction of False entries over all masks: float32 scalar; under `vmap`, one a seed.

    For gates and for params it is the fraction of exact zeros. `report(params, masks)` says what
    was pruned of the params: masks know nothing of the weights.

    Raises:
      TypeError: for an optimizer's state, and for leaves that are neither bool nor float.
      ValueError: if all masks are None.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> float(jp.sparsity({'kernel': jnp.array([[True, False], [False, False]]), 'bias': None}))
    0.75
    """
    _check_no_state("sparsity", masks)
    leaves = present(masks)
    size = sum(mask.size for mask in leaves)
    zeros = [n_true(mask == 0)[0] for mask in leaves]
    if size >= 2**31:  # more than int32 can count
        return jnp.stack([n / size for n in zeros]).sum()
    return jnp.stack(zeros).sum() / size


def overlap(masks_a: Masks, masks_b: Masks) -> jax.Array:
    """Intersection over union of the kept weights of two trees of masks: float32 scalar, 0 to 1.

    Two trees that both keep nothing overlap by 1.

    Raises:
      ValueError: if their paths or shapes differ, or all are None.
      TypeError: if a mask is not bool.
    """
    pairs = []
    for (leaf_name, a), (_, b) in zip(
        named_leaves(masks_a), named_leaves(like(masks_b, masks_a)), strict=True
    ):
        if (a is None) != (b is None):
            raise ValueError(
                f"only one of these masks prunes '{leaf_name}': make both with the same prunable."
            )
        if a is not None:
            for one in (a, b):
                if not is_mask(one):
                    raise TypeError(
                        f"overlap compares masks (bool); '{leaf_name}' is {jnp.result_type(one)}. "
                        "For optimizer states: get_masks(opt_state); for params: "
                        "jax.tree.map(lambda w: w != 0, params)."
                    )
            pairs.append((a, b))
    if not pairs:
        raise ValueError(_NO_MASKS)
    counts = jnp.stack([n_true(a & b, a | b) for a, b in pairs])
    both, either = counts.astype(jnp.float32).sum(0)
    return jnp.where(either > 0, both / jnp.maximum(either, 1), 1.0)


_NO_MASKS = "there are no masks: every leaf is None."


def present(masks: Masks) -> list[jax.Array]:
    """The masks that are not None; ValueError if all are."""
    leaves = jax.tree.leaves(masks)
    if not leaves:
        raise ValueError(_NO_MASKS)
    return leaves


def _check_no_state(what: str, masks: Any) -> None:
    """TypeError if these are no masks, gates or params, such as an optimizer's state."""
    nodes = jax.tree.leaves(masks, is_leaf=_is_state)
    wrong = [node for node in nodes if _is_state(node) or not _is_bool_or_float(node)]
    if wrong:
        kind = getattr(wrong[0], "dtype", type(wrong[0]).__name__)
        raise TypeError(
            f"{what} takes masks (bool), gates or params (floats); got a leaf or state of type "
            f"{kind}. For an optimizer's state: {what}(get_masks(opt_state))."
        )


def _is_state(node: Any) -> bool:
    """Whether a node is a state of optax or of this library."""
    if not isinstance(node, tuple) or not hasattr(node, "_fields") or _is_hole(node):
        return False
    of_optax = type(node).__module__.partition(".")[0] == "optax"  # `gates.Multipliers` are params
    return of_optax or not {"masks", "mask_state"}.isdisjoint(node._fields)


def _is_bool_or_float(leaf: Any) -> bool:
    kind = np.dtype(object) if not hasattr(leaf, "dtype") else leaf.dtype
    return kind == np.bool_ or jnp.issubdtype(kind, jnp.floating)


def _are_bool(masks: Masks) -> bool:
    return all(is_mask(mask) for mask in jax.tree.leaves(masks))


def _is_hole(node: Any) -> bool:
    """None, or what `optax.masked` and `optax.partition` leave in the place of a leaf."""
    return node is None or isinstance(node, optax.MaskedNode)


def _masked(leaf_name: str, leaf: Any, mask: Any) -> jax.Array:
    mask = jnp.asarray(mask)
    if mask.dtype == bool:
        if mask.shape != np.shape(leaf):
            raise _shapes_differ(leaf_name, leaf, mask)
        return jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))  # not `*`: inf * 0 is nan
    try:
        fits = jnp.broadcast_shapes(mask.shape, np.shape(leaf)) == np.shape(leaf)
    except ValueError:
        fits = False
    if not fits:
        raise _shapes_differ(leaf_name, leaf, mask)
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        raise TypeError(
            f"the gate of '{leaf_name}' is {mask.dtype}, and multiplies; it would round its "
            f"parameter, {jnp.result_type(leaf)}. Params come first: apply_masks(params, masks)."
        )
    return leaf * mask.astype(leaf.dtype)


def _shapes_differ(leaf_name: str, leaf: Any, mask: Any) -> ValueError:
    shape = f"'{leaf_name}' has shape {np.shape(mask)}, wanted {np.shape(leaf)}"
    way_out = (
        "Use masks made from these params; if one of them has a leading axis of seeds, vmap over "
        "both."
    )
    return unlike("these masks", [shape], way_out=way_out)


def _aligned(masks: Masks, params: Params) -> tuple[list[tuple[tuple[str, Any], Any]], Any]:
    """((path, leaf), mask) of every leaf of `params`, and the tree structure of `params`."""
    if not has_layers(params):
        masks = folded(masks)
    elif not has_layers(masks):
        masks = split_like(masks, params)
    leaves, treedef = named_leaves(params), jax.tree.structure(params, is_leaf=is_none)
    paths = list(by_keys(params))
    given = {
        path: None if _is_hole(mask) else mask for path, mask in by_keys(masks, _is_hole).items()
    }
    # labels of optax.partition may be a prefix: then one hole stands for all leaves below it
    holes = {path for path, mask in given.items() if mask is None}
    is_below = lambda path: any(path[:end] in holes for end in range(1, len(path)))
    missing = [
        leaf
        for path, leaf in zip(paths, leaves, strict=True)
        if leaf[1] is not None and path not in given and not is_below(path)
    ]
    unknown = {path for path, mask in given.items() if mask is not None} - set(paths)
    extra = sorted(("/".join(path), None) for path in unknown)
    if missing or extra:
        way_out = "Write masks with None (not nothing) where a leaf is never pruned."
        raise unlike("these masks", (), missing, extra, way_out)
    return [(leaf, given.get(path)) for path, leaf in zip(paths, leaves, strict=True)], treedef


def _field(node: Any, field: str) -> Any:
    """`node.field` of a state, `node["field"]` of a bare restore, None where it has neither."""
    if isinstance(node, Mapping):
        return node.get(field)
    return getattr(node, field, None)


def kinds(opt_state: Any) -> str:
    """The type of a state; for a chain its parts too, "tuple (ScaleByAdamState, ...)"."""
    parts = opt_state if type(opt_state) is tuple else ()
    names = ", ".join(type(part).__name__ for part in parts)
    return type(opt_state).__name__ + (f" ({names})" if names else "")


def mask_states(opt_state: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(path, mask state) of every `sparsify`, `keep_dense` or the like, nested ones too."""

    def is_holder(node: Any) -> bool:
        return _field(node, "mask_state") is not None

    for path, node in jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=is_holder):
        if is_holder(node):
            below = jax.tree_util.keystr(path, simple=True, separator="/")
            here = "/".join(part for part in (place, below) if part)
            yield here, _field(node, "mask_state")
            yield from mask_states(_field(node, "inner_state"), f"{here}/inner_state".lstrip("/"))
