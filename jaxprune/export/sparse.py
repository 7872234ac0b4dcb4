"""Trees of JAX's own sparse arrays: BCOO for any kernel, BCSR for matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR

from jaxprune.base import Masks, Params, is_known
from jaxprune.masks import like
from jaxprune.rules import named_leaves


def to_bcoo(params: Params, masks: Masks) -> Any:
    """`params` with a `BCOO` in place of every leaf that has a mask.

    It stores exactly what the mask keeps, weights that are 0 too, in the order of the array. What
    is stored has no static size under `jit`: call it outside.

    Raises:
      ValueError: if masks and params do not fit, or under `jit`.
    """
    return _converted("to_bcoo", params, masks, _bcoo)


def to_bcsr(params: Params, masks: Masks) -> Any:
    """`params` with a `BCSR` in place of every matrix that has a mask; other leaves as they are.

    A kernel of another rank stays dense, with zeros where it is masked. On CPUs
    products with BCSR are the faster ones.

    Raises:
      ValueError: if masks and params do not fit, or under `jit`.
    """
    return _converted("to_bcsr", params, masks, _bcsr)


def to_dense(tree: Any) -> Params:
    """The tree with every BCOO and BCSR made dense."""
    is_sparse = lambda x: isinstance(x, (BCOO, BCSR))
    return jax.tree.map(lambda x: x.todense() if is_sparse(x) else x, tree, is_leaf=is_sparse)


def _converted(what: str, params: Params, masks: Masks, convert: Any) -> Any:
    owned = like(masks, params)
    leaves = []
    for (_, w), (leaf_name, mask) in zip(named_leaves(params), named_leaves(owned), strict=True):
        if not is_known((w, mask)):
            raise ValueError(
                f"{what}: how many weights '{leaf_name}' keeps must be known. Call {what} outside "
                "of jit and vmap; its result may go into them."
            )
        leaves.append(w if mask is None else convert(w, np.asarray(mask)))
    treedef = jax.tree.structure(params, is_leaf=lambda x: x is None)
    return jax.tree.unflatten(treedef, leaves)


def _bcoo(w: jax.Array, mask: np.ndarray) -> BCOO:
    indices = np.argwhere(mask).astype(np.int32)
    values = jnp.asarray(w)[tuple(indices.T)]
    return BCOO(
        (values, jnp.asarray(indices)), shape=w.shape, indices_sorted=True, unique_indices=True
    )


def _bcsr(w: jax.Array, mask: np.ndarray) -> Any:
    if np.ndim(w) != 2:
        return jnp.where(mask, w, jnp.zeros((), w.dtype))
    rows, columns = np.nonzero(mask)
    starts = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
    values = jnp.asarray(w)[rows, columns]
    parts = values, jnp.asarray(columns.astype(np.int32)), jnp.asarray(starts)
    return BCSR(parts, shape=w.shape, indices_sorted=True, unique_indices=True)
