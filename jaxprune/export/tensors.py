"""A sparse network as safetensors: the kept values, a bit a weight, and a description in JSON.

What is masked takes a bit, what is kept its own size and a bit. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, Params
from jaxprune.export.bits import pack_array, unpack_array
from jaxprune.masks import like
from jaxprune.rules import named_leaves

FORMAT = "jaxprune-sparse-1"
MASK = "mask of "  # before the path of the leaf it belongs to


def save_tensors(path: str | os.PathLike[str], params: Params, masks: Masks) -> Path:
    """Writes `path` (safetensors) and its description beside it (`.json`): both whole, or neither.

    Args:
      path: ends in `.safetensors`; replaced if it exists.
      params: nested dicts of arrays; no name has a "/" in it.
      masks: bool, like `params`; None where never pruned. Only what they keep is written.

    Returns:
      The path of the file.

    Raises:
      ValueError: if the path or a name can't be, or masks and params do not fit.
      ImportError: without the package safetensors.
    """
    from safetensors.flax import save

    target = _target(path)
    tensors, description = {}, {}
    owned = dict(named_leaves(like(masks, params)))
    for (keys, w), (leaf_name, _) in zip(
        jax.tree_util.tree_leaves_with_path(params), _present(params), strict=True
    ):
        _check_keys(leaf_name, keys)
        mask = owned[leaf_name]
        tensors[leaf_name] = jnp.asarray(w)
        if mask is not None:
            tensors[leaf_name] = jnp.asarray(w)[np.asarray(mask)]
            tensors[MASK + leaf_name] = pack_array(mask)
        description[leaf_name] = {
            "shape": list(np.shape(w)),
            "dtype": str(w.dtype),
            "kept": int(tensors[leaf_name].size),
            "masked": mask is not None,
        }
    sidecar = json.dumps({"format": FORMAT, "tensors": description}, indent=2) + "\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    parts = {target: save(tensors), target.with_suffix(".json"): sidecar.encode()}
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in parts}
    try:
        for final, content in parts.items():
            drafts[final].write_bytes(content)
        for final, draft in drafts.items():
            os.replace(draft, final)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    return target


def load_tensors(path: str | os.PathLike[str]) -> tuple[Params, Masks]:
    """(params, masks) of `save_tensors`: nested dicts, zeros where a mask is False.

    Raises:
      ValueError: if the file and its description do not fit each other; it names the leaf.
      FileNotFoundError: if one of them is missing.
    """
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    target = _target(path)
    beside = target.with_suffix(".json")
    for needed in (target, beside):
        if not needed.is_file():
            raise FileNotFoundError(
                f"load_tensors: there is no '{needed}'; save_tensors writes {target.name} and "
                f"{beside.name} side by side."
            )
    described = _described(beside)
    try:
        tensors = load_file(str(target))
    except SafetensorError as error:
        raise ValueError(
            f"load_tensors: '{target}' is damaged, or no safetensors: {error}."
        ) from error
    wanted = set(described) | {MASK + name for name, own in described.items() if own["masked"]}
    if set(tensors) != wanted:
        odd = sorted(set(tensors) ^ wanted)[0]
        raise ValueError(
            f"load_tensors: '{beside}' describes another file than '{target}': only one of them "
            f"has '{odd}'."
        )
    params: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    for leaf_name, own in described.items():
        values, shape = tensors[leaf_name], tuple(own["shape"])
        seen = (str(values.dtype), values.size)
        if seen != (own["dtype"], own["kept"]):
            raise ValueError(
                f"load_tensors: '{beside}' says that '{leaf_name}' keeps {own['kept']:,} weights "
                f"of {own['dtype']}; '{target}' has {seen[1]:,} of {seen[0]}."
            )
        mask = None
        if not own["masked"] and values.shape != shape:
            raise ValueError(
                f"load_tensors: '{beside}' says that '{leaf_name}' has shape {shape}; in "
                f"'{target}' it has {values.shape}."
            )
        if own["masked"]:
            mask = _mask(leaf_name, tensors[MASK + leaf_name], shape, own["kept"], target)
            values = jnp.zeros(shape, values.dtype).at[np.nonzero(np.asarray(mask))].set(values)
        _put(params, leaf_name, values)
        _put(masks, leaf_name, mask)
    return params, masks


def _mask(
    leaf_name: str, bits: jax.Array, shape: tuple[int, ...], kept: int, target: Path
) -> jax.Array:
    fits = bits.dtype == np.uint8 and bits.shape == (-(-int(np.prod(shape)) // 8),)
    mask = unpack_array(bits, shape) if fits else None
    if mask is None or int(np.asarray(mask).sum()) != kept:
        raise ValueError(
            f"load_tensors: the mask of '{leaf_name}' in '{target}' is not one of shape {shape} "
            f"that keeps {kept:,} weights."
        )
    return mask


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"a file of tensors ends in .safetensors; got '{target}'.")
    return target


def _present(params: Params) -> list[tuple[str, Any]]:
    return [(leaf_name, w) for leaf_name, w in named_leaves(params) if w is not None]


def _check_keys(leaf_name: str, keys: tuple[Any, ...]) -> None:
    for key in keys:
        own = getattr(key, "key", None)
        if not isinstance(own, str) or "/" in own:
            raise ValueError(
                f"save_tensors writes nested dicts whose names are strings without a '/'; the path "
                f"to '{leaf_name}' has {key!r}. Make it one with flax.serialization.to_state_dict."
            )


def _described(beside: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(beside.read_text())
        described = content["tensors"]
        if content["format"] != FORMAT:
            raise ValueError(f"it is of format {content['format']!r}")
        for own in described.values():
            own["dtype"], own["kept"], own["masked"]
            if not all(isinstance(n, int) and n >= 0 for n in own["shape"]):
                raise ValueError(f"{own['shape']!r} is no shape")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"load_tensors: '{beside}' is no description that save_tensors wrote: {error}."
        ) from error
    return described


def _put(tree: dict[str, Any], leaf_name: str, leaf: Any) -> None:
    *folders, last = leaf_name.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = leaf
