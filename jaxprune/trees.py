"""Trees: their leaves by name, None leaves, stacks of seeds, and whether two trees are alike.

A leaf may be None: it is never pruned, or not chosen. These functions count it as a leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.prunable.layout import IN_PLACE

Keys = tuple[str, ...]

# --- None leaves ----------------------------------------------------------------------------------


def is_none(leaf: Any) -> bool:
    """Whether `leaf` is `None`; the `is_leaf` of trees with never-pruned leaves."""
    return leaf is None


def map_scored(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`f(leaf, *rest_leaves)` where `tree` has a leaf; where it is None it stays None."""
    return jax.tree.map(
        lambda leaf, *others: None if leaf is None else f(leaf, *others),
        tree,
        *rest,
        is_leaf=is_none,
    )


def with_leaves(tree: Any, leaves: Iterable[Any]) -> Any:
    """`tree` with other leaves, in its order; there is one for each None leaf too."""
    return jax.tree.unflatten(jax.tree.structure(tree, is_leaf=is_none), leaves)


def shape_only(leaf: Any) -> Any:
    """The shape of an array and the dtype that JAX gives it; a Python number is itself."""
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
        return jax.ShapeDtypeStruct(leaf.shape, dtype)
    if isinstance(leaf, (int, float, complex)):
        return leaf
    raise TypeError(
        f"apply_fn is traced with arrays; got {leaf!r} of type {type(leaf).__name__}. Bind what "
        "is no array: lambda params, x: apply_fn(params, x, mode='eval')."
    )


# --- leaves by name -------------------------------------------------------------------------------


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    r"""`(name, leaf)` of every leaf, None leaves included, in the order of `jax.tree.leaves`.

    A name is the path as users write it, `"Dense_0/kernel"`, without the `.value` of flax's boxes
    (`nnx.Variable`, `nn.Partitioned`). No two leaves have one name: where `{"a/w": ...}` and
    `{"a": {"w": ...}}` would share it, a slash inside a key is written `\/`, in the whole tree.
    """
    leaves = keyed_leaves(tree)
    names = ["/".join(keys) for keys, _ in leaves]
    if len(set(names)) < len(names):
        escaped = lambda key: key.replace("\\", "\\\\").replace("/", "\\/")
        names = ["/".join(map(escaped, keys)) for keys, _ in leaves]
    return [(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]


def present_leaves(tree: Any) -> list[tuple[str, Any]]:
    """`(name, leaf)` of every leaf that is not None."""
    return [(name, leaf) for name, leaf in named_leaves(tree) if leaf is not None]


def map_named(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`f(name, leaf, *rest_leaves)` where `tree` has a leaf; where it is None it stays None."""
    columns = [jax.tree.leaves(other, is_leaf=is_none) for other in rest]
    leaves = [
        None if leaf is None else f(name, leaf, *others)
        for (name, leaf), *others in zip(named_leaves(tree), *columns, strict=True)
    ]
    return with_leaves(tree, leaves)


def by_keys(tree: Any, is_leaf: Callable[[Any], bool] = is_none) -> dict[Keys, Any]:
    """Leaves by the keys of their paths, to look up a leaf of one tree in another.

    Two different paths can be alike as text. A last key `value` is left out, so that a tree of
    `flax.nnx` fits the nested dicts that orbax restores it to; no other leaf can have the rest of
    that path, for it leads to a container.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    keyed = [(keys_of(path), leaf) for path, leaf in pairs]
    return {keys[:-1] if keys[-1:] == ("value",) else keys: leaf for keys, leaf in keyed}


def keys_of(path: tuple) -> Keys:
    """The keys of a path as text."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path if key != IN_PLACE)


def keyed_leaves(tree: Any) -> list[tuple[Keys, Any]]:
    """`(keys, leaf)` of every leaf, without the keys that lead into boxes of flax."""
    return [(keys_of(path), leaf) for path, leaf in unboxed_leaves(tree)]


def unboxed_leaves(tree: Any, is_leaf: Callable[[Any], bool] = is_none) -> list[tuple[tuple, Any]]:
    """(path, leaf) as JAX has them, without the key that leads into a box of flax."""
    leaves = []
    is_end = lambda node: is_leaf(node) or _is_box(node)
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_end):
        inside = [((), node)]
        if _is_box(node):
            inside = jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf)
        leaves += [((*path, *rest[1:]), leaf) for rest, leaf in inside]
    return leaves


def _is_box(node: Any) -> bool:
    """Whether flax made this node to hold one array: by name, for flax need not be installed."""
    boxes = ("flax.nnx.variablelib", "Variable"), ("flax.core.meta", "AxisMetadata")
    return any((base.__module__, base.__name__) in boxes for base in type(node).__mro__)


def quoted(leaves: Iterable[tuple[str, Any]], most: int = 12) -> str:
    """The names of `leaves` for an error message, at most `most` of them."""
    names = [repr(name) for name, _ in leaves]
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "(none)"


# --- are two trees alike --------------------------------------------------------------------------


def unlike(
    what: str, shapes: Iterable[str] = (), missing: Any = (), extra: Any = (), way_out: str = ""
) -> ValueError:
    """The one error for trees that differ: each leaf, what was seen and wanted, the way out.

    Args:
      what: the tree that differs from the params, as the subject of a sentence.
      shapes: texts such as `"'kernel' has shape (3,), wanted (4,)"`.
      missing, extra: (name, leaf) that only the params have, and that only this tree has.
    """
    details = [*list(shapes)[:4]]
    details += [f"missing: {quoted(missing)}"] if missing else []
    details += [f"not in the params: {quoted(extra)}"] if extra else []
    return ValueError(f"{what} must be like the params: {'; '.join(details)}. {way_out}".rstrip())


def check_like(
    what: str,
    tree: Any,
    params: Any,
    way_out: str = "If one has a leading axis of seeds, vmap over both.",
    dtypes: bool = False,
    extra: bool = False,
    containers: bool = True,
) -> None:
    """ValueError unless `tree` has the leaves of `params` that are not None, in their shapes.

    Leaves are matched by their keys.

    Args:
      what, way_out: see `unlike`.
      dtypes: whether dtypes must be equal too.
      extra: whether `tree` may have more leaves.
      containers: whether dicts, lists and the like must be the same too.
    """
    kind = lambda x: f"{np.shape(x)}" + (f" of {jnp.result_type(x)}" if dtypes else "")
    seen, wanted = (
        {
            keys: (name, kind(leaf))
            for keys, (name, leaf) in zip(by_keys(t), named_leaves(t), strict=True)
            if leaf is not None
        }
        for t in (tree, params)
    )
    shapes = [
        f"{name!r} has shape {seen[keys][1]}, wanted {shape}"
        for keys, (name, shape) in wanted.items()
        if keys in seen and seen[keys][1] != shape
    ]
    missing = [leaf for keys, leaf in wanted.items() if keys not in seen]
    more = [] if extra else [leaf for keys, leaf in seen.items() if keys not in wanted]
    if shapes or missing or more:
        raise unlike(what, shapes, missing, more, way_out)
    here: Any = jax.tree.structure(tree)
    there: Any = jax.tree.structure(params)
    if containers and here != there:
        raise unlike(what, [f"it is {here}, wanted {there}"], way_out=way_out)


def fitted(what: str, gates: Any, params: Any) -> list[tuple[str, Any, Any]]:
    """(name, leaf, gate) of each leaf of `params` in order; the gate is None where there is none.

    Raises:
      ValueError: for a gate without its leaf, or one that does not broadcast to it.
    """
    what = f"{what}: the gates"
    leaves, given = by_keys(params), by_keys(gates)
    if extra := [
        named
        for keys, named in zip(given, named_leaves(gates), strict=True)
        if named[1] is not None and leaves.get(keys) is None
    ]:
        way_out = (
            "Gates of neurons are folded by structured.apply_gates, and cost "
            "structured.relaxed_cost."
        )
        raise unlike(what, extra=extra, way_out=way_out)
    rows = [
        (name, leaf, given.get(keys))
        for keys, (name, leaf) in zip(leaves, named_leaves(params), strict=True)
    ]
    if shapes := [
        f"{name!r} has shape {np.shape(gate)}, wanted one that broadcasts to {np.shape(leaf)}"
        for name, leaf, gate in rows
        if gate is not None and not _broadcasts(np.shape(gate), np.shape(leaf))
    ]:
        way_out = (
            "Make them with gates.logits(params, axes); if one of them has a leading axis of "
            "seeds, vmap over both."
        )
        raise unlike(what, shapes, way_out=way_out)
    return rows


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) == len(to) and all(a in (1, b) for a, b in zip(shape, to, strict=True))


# --- stacks of seeds ------------------------------------------------------------------------------

HOW_TO_STACK = "From separate trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)."


def count_seeds(stack: Any) -> int:
    """The length of the leading axis that all leaves share, at least 1.

    Raises:
      ValueError: if there is none, it differs from leaf to leaf, or is 0.
    """
    leaves = [(name, jnp.shape(x)) for name, x in present_leaves(stack)]
    if not leaves:
        raise ValueError("a stack of seeds needs at least one array; every leaf is None.")
    for name, shape in leaves:
        if not shape:
            raise ValueError(
                f"in a stack every leaf has a leading axis of seeds; '{name}' is a scalar. "
                + HOW_TO_STACK
            )
    (first, (seeds, *_)), *_ = leaves
    for name, shape in leaves:
        if shape[0] != seeds:
            raise ValueError(
                f"in a stack every leaf has the same number of seeds; '{first}' has {seeds} and "
                f"'{name}' {shape[0]}, of shape {shape}. {HOW_TO_STACK}"
            )
    if not seeds:
        raise ValueError(f"this stack has no seeds: '{first}' has shape {leaves[0][1]}.")
    return seeds
