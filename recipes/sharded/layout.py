"""How the params and the optimizer's state of a model lie on the devices of a mesh."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from recipes.common.folder import RecipeError


def on_mesh(params: Any, specs: Any, mesh: Mesh | AbstractMesh) -> Any:
    """`params` as ShapeDtypeStructs with shardings, from a PartitionSpec for each.

    Raises `RecipeError` for a leaf that its axes of the mesh do not divide; it names the leaf.
    """

    def place(path: Any, x: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        _check_divides(_name(path), x.shape, spec, mesh)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, params, specs)


def state_like(state: Any, params: Any, mesh: Mesh) -> Any:
    """An optimizer's state: masks and moments lie like their param, other leaves on all devices.

    A leaf belongs to a param if its path ends with that of the param, and its shape is equal.

    Args:
      state: shapes and dtypes, as of `jax.eval_shape(tx.init, params)`.
      params: of `on_mesh`.
    """
    of_params = [(_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(params)]

    def place(path: Any, x: Any) -> jax.ShapeDtypeStruct:
        name = f"/{_name(path)}"
        own = [p for n, p in of_params if name.endswith(f"/{n}") and p.shape == x.shape]
        sharding = own[0].sharding if own else NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, state)


def shardings(tree: Any) -> Any:
    """The sharding of each leaf."""
    return jax.tree.map(lambda x: x.sharding, tree)


def by_name(tree: Any) -> dict[str, Any]:
    """Leaves by path; the same for a NamedTuple and for the dict that it was saved as."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def digest(tree: Any) -> str:
    """A hash of all bits; it is equal on every process and for every layout."""
    sha = hashlib.sha256()
    for name, x in by_name(tree).items():
        sha.update(name.encode())
        sha.update(np.asarray(multihost_utils.process_allgather(x, tiled=True)).tobytes())
    return sha.hexdigest()[:16]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_divides(
    name: str, shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh | AbstractMesh
) -> None:
    for axis, size, over, ways in _split(shape, spec, mesh):
        if size % ways:
            raise RecipeError(
                f"'{name}' has shape {shape}, and axis {axis}, of {size}, can't be split over "
                f"the {ways} devices of {over}; take a mesh or a width that fits"
            )


def _split(
    shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh | AbstractMesh
) -> Iterator[tuple[int, int, str, int]]:
    """(axis, its size, the axes of the mesh that split it, into how many parts)."""
    for axis, (size, over) in enumerate(zip(shape, spec, strict=False)):
        names = () if over is None else (over,) if isinstance(over, str) else tuple(over)
        ways = 1
        for one in names:
            ways *= mesh.shape[one]
        yield axis, size, " and ".join(f"'{one}'" for one in names), ways
