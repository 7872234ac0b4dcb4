"""Orbax checkpoints in which a bool costs one bit, and the models of finished runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

import jaxprune as jp
from recipes.common import folder
from recipes.common.errors import RecipeError


def pack(tree: Any) -> Any:
    """`tree` on the host: each bool array as uint8 (ceil(size / 8),), each key as its data."""
    return jax.tree.map(_packed, tree)


def unpack(tree: Any, like: Any) -> Any:
    """What was packed, given the shapes and dtypes of the original: `unpack(pack(t), t)` is t."""
    return jax.tree.map(_unpacked, like, tree)


def packed_shape(x: Any) -> Any:
    """What `pack` makes of an array: its shape and dtype."""
    if _is_key(x):
        return jax.eval_shape(jax.random.key_data, x)
    return jax.ShapeDtypeStruct((-(-x.size // 8),), np.uint8) if x.dtype == bool else x


def _packed(x: Any) -> np.ndarray:
    if _is_key(x):
        x = jax.random.key_data(x)
    return np.packbits(x) if x.dtype == bool else np.asarray(x)


def _unpacked(original: Any, x: np.ndarray) -> Any:
    if _is_key(original):
        return jax.random.wrap_key_data(jnp.asarray(x), impl=jax.random.key_impl(original))
    if original.dtype == bool:
        x = np.unpackbits(x, count=original.size).astype(bool).reshape(original.shape)
    # a copy: what orbax has read may lie in memory that is not a device's to donate
    return x if isinstance(original, np.ndarray) else jnp.array(x)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def write(path: Path, tree: Any) -> None:
    """A pytree of arrays as a folder, whole or absent; it replaces what a stopped run left there.

    Raises `RecipeError` where it can't be written, such as on a full disk.
    """
    try:
        with folder.writing(path, Exception), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree, force=True)
    except RecipeError:
        for draft in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(draft, ignore_errors=True)
        raise


def save_model(path: Path, params: Any, batch_stats: Any, masks: Any) -> None:
    """A network for use: parameters, running statistics, and masks (bool, None where unpruned)."""
    saved = {"params": params, "batch_stats": batch_stats, "masks": jp.pack(masks)}
    write(path, saved)


def load_model(path: Path) -> tuple[Any, Any, Any]:
    """(params, batch_stats, masks) of `save_model`; a mask has the shape of its parameter."""
    if not path.is_dir():
        raise RecipeError(f"there is no model in '{path}'")
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(path.absolute())
    return saved["params"], saved["batch_stats"], jp.unpack(saved["masks"], saved["params"])
