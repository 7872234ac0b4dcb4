"""Rules that match leaves by name, and the prunables `kernels` and `matching`."""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params, call_first, shown
from jaxprune.prunable.layers import (
    Stack,
    is_node,
    taken,
    with_layers,
)
from jaxprune.prunable.layout import IN_PLACE, Axes, Layout, axes_of, layout_of
from jaxprune.prunable.quantized import dequantized
from jaxprune.prunable.reasons import reasons, stacks_of
from jaxprune.trees import (
    is_none,
    keyed_leaves,
    keys_of,
    map_named,
    named_leaves,
    present_leaves,
    quoted,
)

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
    leaves = present_leaves(tree)
    for rule in rules:
        if not any(matches(rule, leaf_name, leaf) for leaf_name, leaf in leaves):
            raise ValueError(
                f"the rule {rule!r} matches no leaf. The leaves are: {quoted(leaves)}. "
                "Correct the rule, or leave it out."
            )


def _chosen(params: Params, is_wanted: Callable[[str, Any], bool], layouts: Mapping) -> Params:
    """`params` with None in place of the other leaves, and layers in place of stacks."""
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
        of_layer = _of_one_layer(layout, leaf.ndim)
        is_matrix = leaf.ndim - len(axes) == 2 and of_layer[:2] == ((0,), (1,))
        if of_layer[:2] != ((), ()) and not is_matrix:
            kernels[path] = of_layer
    return with_layers(only, stacked, kernels)


def layers_of(chosen: Params) -> dict[str, dict[str, Callable[[Any], Any]]]:
    """The layers of each stack that a `prunable` gives: {stack name: {layer name: layer}}.

    A layer is a function that takes it out of an array like the stack.
    """
    stacks: dict[str, dict[str, Callable[[Any], Any]]] = {}
    for root, stack in jax.tree_util.tree_leaves_with_path(chosen, is_leaf=is_node):
        if not isinstance(stack, Stack):
            continue
        for i, layer in enumerate(stack.layers):
            for (keys, slot), axes in zip(keyed_leaves(layer), stack.axes, strict=True):
                if slot is not None:
                    of_stack = "/".join((*keys_of(root), *keys))
                    of_layer = "/".join((*keys_of(root), str(i), *keys))
                    index = np.unravel_index(i, stack.sizes)
                    layer_at = partial(taken, axes=axes, index=index)
                    stacks.setdefault(of_stack, {})[of_layer] = layer_at
    return stacks


def unsaid(tree: Any) -> list[tuple[str, Any]]:
    """`(name, leaf)` of the leaves, without None, whose axes nobody has named."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_none)]
    is_said = lambda path: len(path) > 0 and path[-1] == IN_PLACE
    pairs = zip(paths, named_leaves(tree), strict=True)
    return [named for path, named in pairs if named[1] is not None and not is_said(path)]


def layouts_of(what: str, tree: Any, either_way: bool = False) -> dict[str, Layout]:
    """The layout of each leaf that is not None, by name; a layout that was given counts.

    Args:
      either_way: whether inputs and outputs may change places, so that any matrix will do.

    Raises:
      ValueError: if a layout can't be known. It names the leaf, its shape, and the way out.
    """
    of_names = {leaf_name for leaf_name, _ in unsaid(tree)}
    is_known = lambda leaf_name, rank: leaf_name not in of_names or (either_way and rank == 2)
    return {
        leaf_name: layout_of(what, leaf_name, leaf.shape, is_said=is_known(leaf_name, leaf.ndim))
        for leaf_name, leaf in present_leaves(tree)
    }


def _of_one_layer(layout: Layout, rank: int) -> Layout:
    """The axes of one layer, counted without the axes of the stack."""
    stacked = axes_of(layout.stacked, rank)
    rest = [axis for axis in range(rank) if axis not in stacked]
    inner = lambda axes: tuple(rest.index(axis) for axis in axes_of(axes, rank))
    return Layout(inner(layout.inputs), inner(layout.outputs))


def kernels(params: Params) -> Params:
    """`params` with None in place of every leaf that is not a kernel: the default `prunable`.

    A kernel is a floating-point leaf of rank 2 or more whose name is not that of a bias, the scale
    or the statistics of a norm, an embedding (of tokens or positions), a learned token, or a mask.
    A `b` is a bias, except in a product `a b`, as in low-rank adapters. `report` prints the leaves
    that were left out, and why.

    Layers that are stacked, as `nn.scan` does, count one by one where names and shapes show it: a
    node with each layer as a child stands in place of the stack. Where they do not show it, or an
    axis of inputs is not known, use `matching(stacked=...)`. For another choice see `matching`.

    A kernel that another library has quantized (a node with `qvalue`, `scale` and `zero_point`) is
    one leaf of floats, at the path of the node; its masks are those of the float network.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.kernels({'kernel': jnp.ones((1, 2)), 'bias': jnp.ones(2)})
    {'bias': None, 'kernel': Array([[1., 1.]], dtype=float32)}
    """
    return matching()(params)


@call_first("jp.matching('*/kernel')")
def matching(
    *rules: Rule,
    exclude: Rule | Iterable[Rule] = (),
    stacked: Mapping[Rule, Axes] | None = None,
    layouts: Mapping[Any, Layout] | None = None,
) -> Callable[[Params], Params]:
    """A `prunable`: None in place of every leaf that no rule matches, or that `exclude` matches.

    Args:
      *rules: exact names, globs, compiled regular expressions, or `(name, leaf) -> bool`. With
        no rule, the leaves that `kernels` chooses.
      exclude: one or several rules for leaves to leave out of these.
      stacked: {rule: axes}; each index of these axes is one layer; () for none. By default the
        stacks that `kernels` sees.
      layouts: {rule: Layout}, which names inputs and outputs too; or the result of
        `layouts(fn, params, ...)`, which reads them from a program. Without rules, a leaf that has
        inputs is chosen whatever its name, and a leaf that no product reads is not.

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
        params = dequantized(params)
        check_all_match((*rules, *excluded, *said), params)
        named = present_leaves(params)
        of_leaf = {leaf: Layout(stacked=axes) for leaf, axes in stacks_of(named).items()}
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


def check_any(chosen: Params, params: Params) -> None:
    """ValueError if a `prunable` chose no leaf, TypeError if it chose an integer or a function."""
    if inspect.isfunction(chosen):  # a module of equinox is callable
        raise TypeError(
            f"prunable is a function params -> params; it returned {shown(chosen)}. Call it first, "
            "as in jp.matching('*/kernel')."
        )
    for leaf_name, leaf in present_leaves(chosen):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"prunable chose '{leaf_name}', of {jnp.result_type(leaf)}: only floats are "
                "weights. Leave it out, with prunable=kernels or matching(..., "
                f"exclude={leaf_name!r})."
            )
    if not jax.tree.leaves(chosen):
        raise ValueError(
            f"nothing is prunable among {quoted(present_leaves(params))}. kernels, the default, "
            "chooses leaves of rank 2 or more that are no bias, norm scale or embedding; choose "
            "others with prunable=matching(...)."
        )
