"""Leaves by name: the path of a leaf, rules that match paths, and what is prunable by default."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.prunable.layers import (
    Stack,
    is_node,
    layer_shape,
    taken,
    visible_stacks,
    with_layers,
)
from jaxprune.prunable.layout import IN_PLACE, Axes, Layout, axes_of, layout_of
from jaxprune.trees import is_none, keyed_leaves, keys_of, map_named, named_leaves, quoted

Rule = str | re.Pattern | Callable[[str, Any], bool]


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


# --- what is prunable -----------------------------------------------------------------------------

# Names of leaves that are no kernels, whatever their rank, and what they are.
_NOT_KERNELS = {
    "a bias": re.compile(r".*bias.*", re.IGNORECASE),
    "the scale or shift of a norm": re.compile(r"scale|offset|gamma|beta", re.IGNORECASE),
    "a statistic": re.compile(
        r"((running|moving|ema|batch)_)?(mean|var|variance|count)", re.IGNORECASE
    ),
    "a constant": re.compile(r"(.*_)?mask|freqs_cis|inv_freq", re.IGNORECASE),
    "an embedding": re.compile(
        r".*embed.*|(.*_)?(emb|embs|wte|wpe|pos|position|positions)(_.*)?|pe", re.IGNORECASE
    ),
    "a learned token": re.compile(r"cls|(.*_)?tokens?", re.IGNORECASE),
}
_WEIGHT = re.compile(r"w|weights?|g|gain", re.IGNORECASE)
_NORM = re.compile(r".*norm.*|bn(_?\w)?|ln(_?\w)?", re.IGNORECASE)
_EMBEDDING = re.compile(r".*embed.*|wte|wpe|(.*_)?emb", re.IGNORECASE)
SMALL, NO_FLOATS, EMPTY = (
    "of less than two axes",
    "not of real floats",
    "empty",
)  # these go without saying
_BESIDE_A_BIAS = ("w", "W", "weight", "weights", "kernel")


def why_not(leaf_name: str, leaf: Any, shape: tuple[int, ...], siblings: Mapping = {}) -> str:
    """Why a leaf is no kernel, in words; "" if it is one.

    Args:
      shape: that of one layer of it.
      siblings: the shapes, of one layer, of the leaves beside it, by their last names.
    """
    *parents, own = leaf_name.removesuffix("/value").split("/")  # as orbax restores flax.nnx
    parent = parents[-1] if parents else ""
    if not hasattr(leaf, "ndim") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return NO_FLOATS
    if not leaf.size:
        return EMPTY
    if len(shape) < 2:
        return SMALL
    if "batch_stats" in parents:
        return "a statistic, by its name"
    for what, names in _NOT_KERNELS.items():
        if names.fullmatch(own):
            return f"{what}, by its name"
    # equinox and torch call the scale of a norm and the table of an embedding `weight` too
    if _WEIGHT.fullmatch(own) and _NORM.fullmatch(parent):
        return "the scale of a norm, by its name"
    if _WEIGHT.fullmatch(own) and _EMBEDDING.fullmatch(parent):
        return "an embedding, by its name"
    if own in ("b", "B") and not _is_factor(shape, siblings):
        return "a bias, by its name; it makes no product with an `a` beside it"
    return ""


def _is_factor(b: tuple[int, ...], siblings: Mapping) -> bool:
    """Whether a `b` is a matrix of a product a b, as in low-rank adapters, and no bias.

    Beside a `w` it is one if the product has its shape.
    """
    a = next((siblings[name] for name in ("a", "A") if name in siblings), None)
    ws = [siblings[name] for name in _BESIDE_A_BIAS if name in siblings]
    if a is None or not ws:
        return a is not None
    if len(a) < 2:
        return False
    products = [(x[-2], y[-1]) for x, y in ((a, b), (b, a)) if x[-1] == y[-2]]
    return any(w[-2:] in products for w in ws)


def _stacks(named: Iterable[tuple[str, Any]]) -> dict[str, tuple[int, ...]]:
    return visible_stacks({leaf: x.shape for leaf, x in named if hasattr(x, "shape")})


def reasons(
    params: Params,
    stacked: Mapping[str, tuple[int, ...]] | None = None,
    said: Mapping[str, Layout] = {},
) -> dict[str, str]:
    """Of each leaf of `params`, by name, why it is no kernel; "" if it is one.

    What was said, or a program says, of its inputs counts more than its name.
    """
    named = [(leaf_name, leaf) for leaf_name, leaf in named_leaves(params) if leaf is not None]
    stacked = _stacks(named) if stacked is None else stacked
    shapes: dict[str, tuple[int, ...]] = {
        leaf_name: layer_shape(jnp.shape(leaf), stacked.get(leaf_name, ()))
        for leaf_name, leaf in named
        if hasattr(leaf, "shape")
    }
    beside: dict[str, dict[str, tuple[int, ...]]] = {}
    for leaf_name, shape in shapes.items():
        parent, _, own = leaf_name.rpartition("/")
        beside.setdefault(parent, {})[own] = shape

    def why(leaf_name: str, leaf: Any) -> str:
        shape, layout = shapes.get(leaf_name, ()), said.get(leaf_name, Layout())
        by_name = why_not(leaf_name, leaf, shape, beside.get(leaf_name.rpartition("/")[0], {}))
        if layout.inputs != () and by_name not in (SMALL, NO_FLOATS, EMPTY):
            return ""
        return by_name or layout.why or ""

    return {leaf_name: why(leaf_name, leaf) for leaf_name, leaf in named}


def _chosen(params: Params, is_wanted: Callable[[str, Any], bool], layouts: Mapping) -> Params:
    """`params` with None in place of what is not wanted, and layers in place of stacks."""
    only = map_named(lambda leaf_name, leaf: leaf if is_wanted(leaf_name, leaf) else None, params)
    if not layouts:
        return only
    stacked, kernels = {}, {}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(only, is_leaf=is_none)]
    for path, (leaf_name, leaf) in zip(paths, named_leaves(params), strict=True):
        layout = layouts.get(leaf_name)
        if layout is None or not is_wanted(leaf_name, leaf):
            continue
        axes = axes_of(layout.stacked, leaf.ndim)
        if axes:
            stacked[path] = axes
        own = _of_one_layer(layout, leaf.ndim)
        is_matrix = leaf.ndim - len(axes) == 2 and own[:2] == ((0,), (1,))
        if own[:2] != ((), ()) and not is_matrix:
            kernels[path] = own
    return with_layers(only, stacked, kernels)


def layers_of(chosen: Params) -> dict[str, dict[str, Callable[[Any], Any]]]:
    """Of each stack in what a `prunable` gives, by its name in the params, its layers by theirs.

    A layer is a function that takes it out of an array like the stack.
    """
    found: dict[str, dict[str, Callable[[Any], Any]]] = {}
    for root, stack in jax.tree_util.tree_leaves_with_path(chosen, is_leaf=is_node):
        if not isinstance(stack, Stack):
            continue
        for i, layer in enumerate(stack.layers):
            for (keys, slot), axes in zip(keyed_leaves(layer), stack.axes, strict=True):
                if slot is not None:
                    whole = "/".join((*keys_of(root), *keys))
                    own = "/".join((*keys_of(root), str(i), *keys))
                    index = np.unravel_index(i, stack.sizes)
                    found.setdefault(whole, {})[own] = partial(taken, axes=axes, index=index)
    return found


def unsaid(tree: Any) -> list[tuple[str, Any]]:
    """`(name, leaf)` of the leaves, without None, of which nobody said what their axes are."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)]
    is_said = lambda path: len(path) > 0 and path[-1] == IN_PLACE
    pairs = zip(paths, named_leaves(tree), strict=True)
    return [named for path, named in pairs if named[1] is not None and not is_said(path)]


def layouts_of(what: str, tree: Any, either_way: bool = False) -> dict[str, Layout]:
    """The layout of each leaf that is no None, by name; what was said counts.

    Args:
      either_way: whether inputs and outputs may change places, so that any matrix will do.

    Raises:
      ValueError: if one can't be known. It names the leaf, its shape, and the way out.
    """
    of_names = {leaf_name for leaf_name, _ in unsaid(tree)}
    is_known = lambda leaf_name, rank: leaf_name not in of_names or (either_way and rank == 2)
    return {
        leaf_name: layout_of(what, leaf_name, leaf.shape, is_said=is_known(leaf_name, leaf.ndim))
        for leaf_name, leaf in named_leaves(tree)
        if leaf is not None
    }


def _of_one_layer(layout: Layout, rank: int) -> Layout:
    """The axes of one layer, where those of the stack are gone."""
    stacked = axes_of(layout.stacked, rank)
    rest = [axis for axis in range(rank) if axis not in stacked]
    inner = lambda axes: tuple(rest.index(axis) for axis in axes_of(axes, rank))
    return Layout(inner(layout.inputs), inner(layout.outputs))


def kernels(params: Params) -> Params:
    """`params` with None in place of every leaf that is not a kernel: the default `prunable`.

    A kernel is a floating-point leaf of rank 2 or more that is not called a bias, the scale or
    the statistics of a norm, an embedding (of tokens or positions), a token that is learned, or a
    mask. A `b` is a bias, but for that of a product `a b`, as in low-rank adapters.
    `report` prints what was left out, and why.

    Layers that are stacked, as `nn.scan` does it, count one by one where names and shapes show it:
    in the place of a stack is a node with each layer as a child. Where they do not, or an axis of
    inputs is not known, say it: `matching(stacked=...)`. For another choice see `matching`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.kernels({'kernel': jnp.ones((1, 2)), 'bias': jnp.ones(2)})
    {'bias': None, 'kernel': Array([[1., 1.]], dtype=float32)}
    """
    return matching()(params)


def matching(
    *rules: Rule,
    exclude: Rule | Iterable[Rule] = (),
    stacked: Mapping[Rule, Axes] | None = None,
    layouts: Mapping[Any, Layout] | None = None,
) -> Callable[[Params], Params]:
    """A `prunable`: None in place of every leaf that no rule matches, or that `exclude` matches.

    Args:
      *rules: exact names, globs, compiled regular expressions, or `(name, leaf) -> bool`. With
        no rule, all that `kernels` chooses.
      exclude: one or several rules for leaves to leave out of these.
      stacked: from rules to the axes of which each index is a layer of its own; () for none. By
        default those that `kernels` sees.
      layouts: from rules to a `Layout`, which says inputs and outputs too; or as
        `layouts(fn, params, ...)` finds them in a program. Without rules, what has inputs is
        chosen whatever its name, and what no product reads is not.

    Returns:
      `params -> params` with None holes, and layers in the place of stacks. It raises ValueError if
      a rule matches no leaf, or a leaf has no such axis.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'body': {'kernel': jnp.ones((2, 2))}, 'head': {'kernel': jnp.ones((2, 1))}}
    >>> jp.matching(exclude='head/*')(params)['head']
    {'kernel': None}
    >>> params = {'layers': {'kernel': jnp.ones((8, 4, 4))}}
    >>> list(jp.at_init.empty_layers(jp.matching(stacked={'layers/*': 0})(params)))[:2]
    ['layers/0/kernel', 'layers/1/kernel']
    """
    if len(rules) == 1 and isinstance(rules[0], (list, tuple, set)):
        rules = tuple(rules[0])
    single = isinstance(exclude, (str, re.Pattern)) or callable(exclude)
    excluded: tuple[Rule, ...] = (exclude,) if single else tuple(exclude)  # type: ignore[assignment,arg-type]
    said: dict[Rule, Layout] = {**(layouts or {})}
    said |= {rule: Layout(stacked=axes) for rule, axes in (stacked or {}).items()}

    def prunable(params: Params) -> Params:
        check_all_match((*rules, *excluded, *said), params)
        named = [(leaf_name, leaf) for leaf_name, leaf in named_leaves(params) if leaf is not None]
        of_leaf = {leaf: Layout(stacked=axes) for leaf, axes in _stacks(named).items()}
        for leaf_name, leaf in named:
            for rule, layout in said.items():
                if matches(rule, leaf_name, leaf):
                    _check_layout(leaf_name, leaf, layout)
                    of_leaf[leaf_name] = layout
        axes = {leaf: axes_of(of.stacked, _rank(dict(named)[leaf])) for leaf, of in of_leaf.items()}
        why = {} if rules else reasons(params, axes, of_leaf)

        def is_wanted(leaf_name: str, leaf: Any) -> bool:
            chosen = (
                any(matches(rule, leaf_name, leaf) for rule in rules)
                if rules
                else not why[leaf_name]
            )
            return chosen and not any(matches(rule, leaf_name, leaf) for rule in excluded)

        return _chosen(params, is_wanted, of_leaf)

    return prunable


def _rank(leaf: Any) -> int:
    return max(len(jnp.shape(leaf)), 1)


def _check_layout(leaf_name: str, leaf: Any, layout: Layout) -> None:
    rank = len(jnp.shape(leaf))
    several = lambda axes: [axes] if isinstance(axes, int) else list(axes)
    named = [a for axes in layout[:3] for a in several(axes)]
    if any(not -rank <= axis < rank for axis in named) or len({a % rank for a in named}) < len(
        named
    ):
        raise ValueError(
            f"'{leaf_name}' has shape {jnp.shape(leaf)}; of its axes got inputs={layout.inputs}, "
            f"outputs={layout.outputs}, stacked={layout.stacked}. Each axis is one of these, or "
            "spatial, and counts from 0."
        )


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
