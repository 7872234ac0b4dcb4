"""Orbax checkpoints in which a bool costs one bit: finished models, and runs that were stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

import jaxprune as jp
from jaxprune.export.bits import pack_array, unpack_array
from recipes.common.errors import RecipeError
from recipes.common.run import remove


def pack(tree: Any) -> Any:
    """`tree` with each bool array as uint8 (ceil(size / 8),), eight entries in each."""
    return jax.tree.map(lambda x: pack_array(x) if _is_bool(x) else x, tree)


def unpack(tree: Any, like: Any) -> Any:
    """What was packed, given the shapes and dtypes of the original: `unpack(pack(t), t)` is t."""
    return jax.tree.map(
        lambda original, x: unpack_array(x, original.shape) if _is_bool(original) else x, like, tree
    )


def save_model(path: Path, params: Any, batch_stats: Any, masks: Any) -> None:
    """A network for use: parameters, running statistics, and masks (bool, None where unpruned)."""
    _save(path, {"params": params, "batch_stats": batch_stats, "masks": jp.pack(masks)})


def load_model(path: Path) -> tuple[Any, Any, Any]:
    """(params, batch_stats, masks) of `save_model`; a mask has the shape of its parameter."""
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(path.absolute())
    return saved["params"], saved["batch_stats"], jp.unpack(saved["masks"], saved["params"])


def save_checkpoint(folder: Path, step: int, state: Any) -> Path:
    """All that a run needs to go on at `step`, as `folder/step`; replaces what was in `folder`."""
    path = folder / str(step)
    _save(path, pack(state))
    for other in folder.iterdir():
        if other != path:
            remove(other)
    return path


def load_checkpoint(folder: Path, like: Any) -> tuple[int, Any]:
    """(step, state) of the last checkpoint in `folder`.

    `like` is a state of the same structure, shapes and dtypes. Raises `RecipeError` if there is no
    checkpoint or it holds another structure.
    """
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if not steps:
        raise RecipeError(f"there is no checkpoint in '{folder}'")
    path = folder / str(max(steps))
    with ocp.StandardCheckpointer() as checkpointer:
        saved = _by_name(checkpointer.restore(path.absolute()))
    wanted = _by_name(jax.eval_shape(pack, like))
    if _shapes(saved) != _shapes(wanted):
        raise RecipeError(f"the checkpoint in '{path}' is of another configuration")
    packed = jax.tree.unflatten(jax.tree.structure(like), [saved[name] for name in wanted])
    return max(steps), unpack(packed, like)


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by path; the same for a NamedTuple and for the dict that it was saved as."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _shapes(leaves: dict[str, Any]) -> dict[str, Any]:
    return {name: (leaf.shape, leaf.dtype) for name, leaf in leaves.items()}


def _save(path: Path, tree: Any) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)


def _is_bool(x: Any) -> bool:
    return x.dtype == bool
