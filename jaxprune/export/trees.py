"""Trees in JSON: the paths of their leaves, and the tree of such paths again."""

from __future__ import annotations

from typing import Any

import jax


def is_empty(node: Any) -> bool:
    """Whether this is None or an empty container."""
    return node is None or (isinstance(node, (dict, list, tuple)) and not node)


def kind_of(node: Any) -> str:
    """The word in JSON for this empty node."""
    return "none" if node is None else "dict" if isinstance(node, dict) else "list"


def empty(kind: str) -> Any:
    """A new empty node of this kind."""
    nodes: dict[str, Any] = {"none": None, "dict": {}, "list": []}
    return nodes[kind]


def in_json(keys: tuple, key: Any) -> Any:
    """A key of a path: a name, a number, or a place in a list as [place]."""
    if isinstance(key, jax.tree_util.SequenceKey):
        return [key.idx]
    name = getattr(key, "name", getattr(key, "key", None))
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise ValueError(
            "save_tensors writes dicts with names or numbers as keys, lists and what has named "
            f"fields; the path {jax.tree_util.keystr(keys)} has {key!r}. Save a dict of its parts."
        )
    return name


def built(leaves: list[tuple[list[Any], Any]]) -> Any:
    """The tree of (path, leaf) pairs."""
    if len(leaves) == 1 and not leaves[0][0]:
        return leaves[0][1]
    below: dict[Any, list[tuple[list[Any], Any]]] = {}
    for (first, *rest), leaf in leaves:
        below.setdefault(first[0] if isinstance(first, list) else first, []).append((rest, leaf))
    children = {key: built(pairs) for key, pairs in below.items()}
    is_list = bool(leaves) and isinstance(leaves[0][0][0], list)
    return [children[i] for i in sorted(children)] if is_list else children
