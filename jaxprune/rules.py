"""Leaves by name: the path of a leaf, rules that match paths, and what is prunable by default."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params, is_none

Rule = str | re.Pattern | Callable[[str, Any], bool]


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    r"""`(name, leaf)` of every leaf, None leaves included, in the order of `jax.tree.leaves`.

    A name is the path as users write it, `"Dense_0/kernel"`, without the `.value` of flax's boxes
    (`nnx.Variable`, `nn.Partitioned`). No two leaves have one name: where `{"a/w": ...}` and
    `{"a": {"w": ...}}` would share it, a slash inside a key is written `\/`, in the whole tree.
    """
    leaves = _keyed_leaves(tree)
    names = ["/".join(keys) for keys, _ in leaves]
    if len(set(names)) < len(names):
        escaped = lambda key: key.replace("\\", "\\\\").replace("/", "\\/")
        names = ["/".join(map(escaped, keys)) for keys, _ in leaves]
    return [(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]


def map_named(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`f(name, leaf, *rest_leaves)` where `tree` has a leaf; where it is None it stays None."""
    treedef = jax.tree.structure(tree, is_leaf=is_none)
    others = [jax.tree.leaves(other, is_leaf=is_none) for other in rest]
    leaves = [
        None if leaf is None else f(leaf_name, leaf, *own)
        for (leaf_name, leaf), *own in zip(named_leaves(tree), *others, strict=True)
    ]
    return jax.tree.unflatten(treedef, leaves)


def by_keys(tree: Any, is_leaf: Callable[[Any], bool] = is_none) -> dict[tuple[str, ...], Any]:
    """Leaves by the keys of their paths, to find those of one tree in another.

    As text two paths can be alike that are not. A last key `value` is left out, so that a tree of
    `flax.nnx` fits the nested dicts that orbax restores it to; no other leaf can have the rest of
    that path, for it leads to a container.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    keys = [(_keys(path), leaf) for path, leaf in pairs]
    return {own[:-1] if own[-1:] == ("value",) else own: leaf for own, leaf in keys}


def _keys(path: tuple) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _keyed_leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    """(keys, leaf), without the key that leads into a box of flax."""
    found = []
    is_end = lambda node: node is None or _is_box(node)
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_end):
        inside = [((), node)]
        if _is_box(node):
            inside = jax.tree_util.tree_leaves_with_path(node, is_leaf=is_none)
        found += [((*_keys(path), *_keys(rest[1:])), leaf) for rest, leaf in inside]
    return found


def _is_box(node: Any) -> bool:
    """Whether flax made this node to hold one array: by name, for flax need not be installed."""
    boxes = ("flax.nnx.variablelib", "Variable"), ("flax.core.meta", "AxisMetadata")
    return any((own.__module__, own.__name__) in boxes for own in type(node).__mro__)


def matches(rule: Rule, leaf_name: str, leaf: Any) -> bool:
    """Whether `rule` means this leaf.

    A string is an exact name or a glob (`"*/kernel"`, `"Dense_[01]/*"`; `*` also crosses `/`), a
    compiled regular expression is searched for in the name, and a callable is given
    `(name, leaf)`.
    """
    if isinstance(rule, str):
        return leaf_name == rule or fnmatch.fnmatchcase(leaf_name, rule)
    if isinstance(rule, re.Pattern):
        return rule.search(leaf_name) is not None
    if callable(rule):
        return bool(rule(leaf_name, leaf))
    raise TypeError(
        "a rule is a string (an exact path or a glob), a compiled regular expression, or a "
        f"callable (path, leaf) -> bool; got {rule!r}."
    )


def check_all_match(rules: Iterable[Rule], tree: Any) -> None:
    """ValueError if a rule matches no leaf of `tree`: a mistyped rule must not pass silently."""
    leaves = [(leaf_name, leaf) for leaf_name, leaf in named_leaves(tree) if leaf is not None]
    for rule in rules:
        if not any(matches(rule, leaf_name, leaf) for leaf_name, leaf in leaves):
            raise ValueError(
                f"the rule {rule!r} matches no leaf. The leaves are: {quoted(leaves)}. "
                "Correct the rule, or leave it out."
            )


def quoted(leaves: Iterable[tuple[str, Any]], most: int = 12) -> str:
    """The names of `leaves` for an error message, at most `most` of them."""
    names = [repr(leaf_name) for leaf_name, _ in leaves]
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "(none)"


# --- what is prunable -----------------------------------------------------------------------------

# Names of leaves that are no kernels, whatever their rank: nn.scan and vmap stack them.
_NOT_KERNELS = re.compile(
    r"(.*bias.*|b|scale|offset|gamma|beta|mean|var|.*embed.*|cls(_token)?|count)", re.IGNORECASE
)
_NAMED_WEIGHT = re.compile(r"(w|weight|weights)", re.IGNORECASE)
_NOT_PRUNED_PARENT = re.compile(r"(.*norm.*|.*embed.*|bn\d*|ln\d*)", re.IGNORECASE)


def _is_kernel(leaf_name: str, leaf: Any) -> bool:
    *parents, own = leaf_name.removesuffix("/value").split("/")  # as orbax restores flax.nnx
    if not hasattr(leaf, "ndim") or leaf.ndim < 2 or not leaf.size:
        return False
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or "batch_stats" in parents:
        return False
    if _NOT_KERNELS.fullmatch(own):
        return False
    # equinox and torch call the scale of a norm and the table of an embedding `weight` too
    is_weight = _NAMED_WEIGHT.fullmatch(own) is not None
    return not (is_weight and parents and _NOT_PRUNED_PARENT.fullmatch(parents[-1]))


def _only(params: Params, is_wanted: Callable[[str, Any], bool]) -> Params:
    return map_named(lambda leaf_name, leaf: leaf if is_wanted(leaf_name, leaf) else None, params)


def kernels(params: Params) -> Params:
    """`params` with None in place of every leaf that is not a kernel: the default `prunable`.

    A kernel is a floating-point leaf of rank 2 or more that is not called a bias, the scale or
    the statistics of a norm, or an embedding; so a bias that `nn.scan` or `vmap` stacked to rank
    2 is none. For another choice see `matching`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.kernels({'kernel': jnp.ones((1, 2)), 'bias': jnp.ones(2)})
    {'bias': None, 'kernel': Array([[1., 1.]], dtype=float32)}
    """
    return _only(params, _is_kernel)


def matching(*rules: Rule, exclude: Rule | Iterable[Rule] = ()) -> Callable[[Params], Params]:
    """A `prunable`: None in place of every leaf that no rule matches, or that `exclude` matches.

    Args:
      *rules: exact names, globs, compiled regular expressions, or `(name, leaf) -> bool`. With
        no rule, all that `kernels` chooses.
      exclude: one or several rules for leaves to leave out of these.

    Returns:
      `params -> params` with None holes. It raises ValueError if a rule matches no leaf.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'body': {'kernel': jnp.ones((2, 2))}, 'head': {'kernel': jnp.ones((2, 1))}}
    >>> jp.matching(exclude='head/*')(params)['head']
    {'kernel': None}
    """
    if len(rules) == 1 and isinstance(rules[0], (list, tuple, set)):
        rules = tuple(rules[0])
    single = isinstance(exclude, (str, re.Pattern)) or callable(exclude)
    excluded: tuple[Rule, ...] = (exclude,) if single else tuple(exclude)  # type: ignore[assignment,arg-type]

    def prunable(params: Params) -> Params:
        check_all_match((*rules, *excluded), params)

        def is_wanted(leaf_name: str, leaf: Any) -> bool:
            chosen = (
                any(matches(rule, leaf_name, leaf) for rule in rules)
                if rules
                else _is_kernel(leaf_name, leaf)
            )
            return chosen and not any(matches(rule, leaf_name, leaf) for rule in excluded)

        return _only(params, is_wanted)

    return prunable


def check_any(own: Params, params: Params) -> None:
    """ValueError if a `prunable` left nothing of `params`, TypeError if it chose an integer."""
    for leaf_name, leaf in named_leaves(own):
        if leaf is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"prunable chose '{leaf_name}', of {jnp.result_type(leaf)}: only weights, floats, "
                "are pruned. Leave it out, with prunable=kernels or matching(..., "
                f"exclude={leaf_name!r})."
            )
    if not jax.tree.leaves(own):
        leaves = [(leaf_name, leaf) for leaf_name, leaf in named_leaves(params) if leaf is not None]
        raise ValueError(
            f"nothing is prunable among {quoted(leaves)}. kernels, the default, chooses "
            "leaves of rank 2 or more that are no bias, norm scale or embedding; choose "
            "others with prunable=matching(...)."
        )
