"""Arrays with the layout of other arrays over devices, for any kind of mesh axes.

Under automatic axes XLA chooses the layout of a constant: masks that are all True would lie whole
on every device. Under explicit axes the layout is part of an array's type, and some operations (a
sort, a reshape that splits an axis) have no rule for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding

from jaxprune.base import is_known


def explicit_sharding(x: Any) -> NamedSharding | None:
    """The sharding in the type of `x`; None unless its mesh has explicit axes."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    is_explicit = isinstance(sharding, NamedSharding) and (
        AxisType.Explicit in sharding.mesh.axis_types
    )
    return sharding if is_explicit else None


def sharded_like(mask: Any, like: Any) -> jax.Array:
    """`mask` (bool), with the sharding of `like`, floats of its shape or a ShapeDtypeStruct."""
    is_whole = is_known(like) and len(getattr(like, "devices", set)()) < 2
    if is_whole:
        return jnp.asarray(mask)
    # True, even for nan; it depends on `like`, so that the mask gets its layout
    return mask & ((like == like) | (like != like))


def automatic(f: Callable[..., Any], like: Any) -> Callable[..., Any]:
    """`f`, traced with automatic axes where the axes of `like` are explicit.

    Args:
      f: its result has the structure and shapes of `like`, a pytree of arrays.
    """
    shardings = jax.tree.map(explicit_sharding, like)
    if not jax.tree.leaves(shardings):
        return f

    def run(*args: Any) -> Any:
        leaves, treedef = jax.tree.flatten(args)
        is_array = [isinstance(x, jax.Array) for x in leaves]
        constants = [None if a else x for x, a in zip(leaves, is_array, strict=True)]

        def inner(arrays: list[jax.Array]) -> Any:
            rest = iter(arrays)
            merged = [next(rest) if a else x for x, a in zip(constants, is_array, strict=True)]
            return f(*jax.tree.unflatten(treedef, merged))

        arrays = [x for x, a in zip(leaves, is_array, strict=True) if a]
        return jax.sharding.auto_axes(inner, out_sharding=shardings)(arrays)

    return run


def on_all_devices(x: jax.Array) -> jax.Array:
    """`x`, known, whole on every device where its axes are explicit; any other array is itself."""
    if explicit_sharding(x) is None:
        return x
    return jax.device_put(x, NamedSharding(x.sharding.mesh, jax.P()))  # type: ignore[attr-defined]
