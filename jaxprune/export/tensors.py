"""A sparse network as safetensors: the kept values, a bit a weight, and a description in JSON.

A pruned weight takes a bit, a kept one its size and a bit. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, Params
from jaxprune.export.bits import pack_array, unpack_array
from jaxprune.export.trees import built, empty, in_json, is_empty, kind_of
from jaxprune.export.whole_files import written_together
from jaxprune.masks import like
from jaxprune.trees import named_leaves, unboxed_leaves

FAMILY = "jaxprune-sparse-"
FORMAT = FAMILY + "2"
MASK = "mask of "  # before the path of the leaf it belongs to

_PLAIN = {"float64", "float32", "float16", "bfloat16", "bool", "complex64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


def save_tensors(path: str | os.PathLike[str], params: Params, masks: Masks = None) -> Path:
    """Writes `path` (safetensors) and its description beside it (`.json`): both, or neither.

    Args:
      path: ends in `.safetensors`; an existing file is replaced, together with its description.
      params: arrays in dicts, lists, tuples, objects with fields, or an `nnx.State`; None and empty
        containers are allowed; any dtype.
      masks: bool, like `params`; None where never pruned, or for all. Only weights that they keep
        are written.

    Returns:
      The path of the file.

    Raises:
      ValueError: if the path or a key is not allowed, masks and params do not fit, or JAX would
        change numbers of 64 bits.
      FileExistsError: if another `.json` file has the name of the description.
      ImportError: without the package safetensors.
    """
    from safetensors.numpy import save

    target = _target(path)
    beside = target.with_suffix(".json")
    _check_ours(beside)
    named = named_leaves(params)
    mask_of = {} if masks is None else dict(named_leaves(like(masks, params)))
    names = iter([leaf_name for leaf_name, leaf in named if leaf is not None])
    taken = {leaf_name for leaf_name, _ in named}
    tensors: dict[str, np.ndarray] = {}
    description: dict[str, Any] = {}
    holes = []
    for keys, w in unboxed_leaves(params, is_empty):
        parts = [in_json(keys, key) for key in keys]
        if is_empty(w):
            holes.append([parts, kind_of(w)])
            continue
        leaf_name = next(names)
        mask, values = mask_of.get(leaf_name), _values(leaf_name, w)
        shape, mask_name = values.shape, None
        if mask is not None:
            mask_name = MASK + leaf_name
            while mask_name in taken:
                mask_name = MASK + mask_name
            taken.add(mask_name)
            tensors[mask_name] = np.asarray(pack_array(mask))
            values = values.reshape(-1)[np.asarray(mask).reshape(-1)]
        tensors[leaf_name] = values if values.dtype.name in _PLAIN else _bytes_of(values)
        description[leaf_name] = {
            "path": parts,
            "shape": list(shape),
            "dtype": values.dtype.name,
            "kept": values.size,
            "mask": mask_name,
        }
    content = save(tensors)
    text = rendered(
        {"format": FORMAT, "file": _checksum(content), "tensors": description, "empty": holes}
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    # the small file first: it can be put back, and a reader that waits for the tensors finds both
    written_together({beside: text.encode(), target: content})
    return target


def load_tensors(path: str | os.PathLike[str]) -> tuple[Params, Masks]:
    """(params, masks) of `save_tensors`: dicts and lists, zeros where a mask is False.

    Objects with fields and the boxes of `flax.nnx` come back as dicts by name, tuples as lists. An
    `nnx.State` takes them back by `nnx.replace_by_pure_dict(state, params)`.

    Raises:
      ValueError: if a bit of the file or its description has changed, or they do not fit each
        other; it names the leaf.
      FileNotFoundError: if one of them is missing.
    """
    from safetensors import SafetensorError, deserialize

    target = _target(path)
    beside = target.with_suffix(".json")
    for needed in (target, beside):
        if not needed.is_file():
            raise FileNotFoundError(
                f"load_tensors: there is no '{needed}'; save_tensors writes {target.name} and "
                f"{beside.name} side by side."
            )
    described = _described(beside)
    content = target.read_bytes()
    damaged = f"load_tensors: '{target}' is damaged, or no safetensors, or of another save than "
    if _checksum(content) != described["file"]:
        raise ValueError(f"{damaged}'{beside}': its checksum is another.")
    try:
        tensors = {name: tensor["data"] for name, tensor in deserialize(content)}
    except SafetensorError as error:
        raise ValueError(f"{damaged}'{beside}': {error}.") from error
    leaves = described["tensors"]
    wanted = set(leaves) | {leaf["mask"] for leaf in leaves.values()} - {None}
    if set(tensors) != wanted:
        odd = sorted(set(tensors) ^ wanted)[0]
        raise ValueError(
            f"load_tensors: '{beside}' describes another file than '{target}': only one of them "
            f"has '{odd}'."
        )
    params = [(keys, empty(kind)) for keys, kind in described["empty"]]
    masks = [(keys, empty(kind)) for keys, kind in described["empty"]]
    for leaf_name, leaf in leaves.items():
        shape, dtype = tuple(leaf["shape"]), _dtype(leaf_name, leaf["dtype"])
        data = tensors[leaf_name]
        if len(data) != leaf["kept"] * dtype.itemsize:
            raise ValueError(
                f"load_tensors: '{beside}' says that '{leaf_name}' keeps {leaf['kept']:,} weights "
                f"of {leaf['dtype']}; '{target}' has {len(data) // dtype.itemsize:,}."
            )
        values, mask = np.frombuffer(data, dtype), None
        if leaf["mask"] is not None:
            mask = _mask(leaf_name, tensors[leaf["mask"]], shape, leaf["kept"], target)
            full = np.zeros(mask.size, dtype)
            full[np.asarray(mask).reshape(-1)] = values
            values = full
        elif values.size != int(np.prod(shape)):
            raise ValueError(
                f"load_tensors: '{beside}' says that '{leaf_name}' has shape {shape}; in "
                f"'{target}' it has {values.size:,} weights."
            )
        params.append((leaf["path"], jnp.asarray(values.reshape(shape))))
        masks.append((leaf["path"], mask))
    return built(params), built(masks)


def rendered(content: dict[str, Any]) -> str:
    """The description in JSON, with a checksum of the rest."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return json.dumps(rest | {"checksum": _checksum(json.dumps(rest).encode())}, indent=2) + "\n"


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _values(leaf_name: str, given: Any) -> np.ndarray:
    w = jnp.asarray(given)
    if jnp.issubdtype(w.dtype, jax.dtypes.extended):
        raise ValueError(
            f"save_tensors: '{leaf_name}' is {w.dtype}, which is no array of numbers. Leave it "
            "out, or give jax.random.key_data of it."
        )
    values = np.asarray(w)
    kind = getattr(given, "dtype", w.dtype)  # numpy has 64 bits
    if kind != w.dtype and not np.array_equal(given, values, equal_nan=kind.kind in "fc"):
        raise ValueError(
            f"save_tensors: '{leaf_name}' is {kind}, and JAX would make it {w.dtype}, which is not "
            f"the same. Turn on jax_enable_x64, or make it {w.dtype} before."
        )
    return values


def _bytes_of(values: np.ndarray) -> np.ndarray:
    """The bytes of an array whose dtype safetensors may not know, such as float8."""
    return np.frombuffer(values.tobytes(), np.uint8)


def _dtype(leaf_name: str, name: str) -> np.dtype:
    dtype = jnp.dtype(name)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"load_tensors: '{leaf_name}' is {name}, and JAX would make it "
            f"{jax.dtypes.canonicalize_dtype(dtype)}. Turn on jax_enable_x64, or save it so."
        )
    return dtype


def _mask(leaf_name: str, data: Any, shape: tuple[int, ...], kept: int, target: Path) -> jax.Array:
    bits = np.frombuffer(data, np.uint8)
    fits = bits.shape == (-(-int(np.prod(shape)) // 8),)
    mask = unpack_array(jnp.asarray(bits), shape) if fits else None
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


def _check_ours(beside: Path) -> None:
    """FileExistsError if another file has the name of the description."""
    if not os.path.lexists(beside):
        return
    try:
        if json.loads(beside.read_text())["format"].startswith(FAMILY):
            return
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise FileExistsError(
        f"save_tensors writes its description to '{beside}', and did not write the file that is "
        f"there. Choose another name than {beside.stem}.safetensors, or move the file."
    )


def _described(beside: Path) -> dict[str, Any]:
    try:
        text = beside.read_bytes().decode()
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"it is of format {content['format']!r}, not {FORMAT!r}")
        content["file"], content["empty"]
        for leaf in content["tensors"].values():
            leaf["path"], leaf["dtype"], leaf["kept"], leaf["mask"]
            if not all(isinstance(n, int) and n >= 0 for n in leaf["shape"]):
                raise ValueError(f"{leaf['shape']!r} is no shape")
        if text != rendered(content):
            raise ValueError("it was changed since; its checksum is another")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"load_tensors: '{beside}' is no description that save_tensors wrote: {error}."
        ) from error
    return content
