"""Couplings as plain data: which axes of which leaves are indexed by the same neurons.

A coupling maps the name of each group of neurons to the axes that they index:

    {"hidden": [("Dense_0/kernel", 1), ("Dense_0/bias", 0), ("Dense_1/kernel", 0)]}

`Structure.coupling()` gives the coupling of an analyzed function. Reordering the neurons of a group
along all of its axes does not change the network's function: weight matching reads nothing else,
and knows no architecture.

A residual stream is one group for a whole stage: the outputs of every layer that adds to it, and
the inputs of every layer that reads it. The neurons inside a block are another group:

    {"stream": [("Conv_0/kernel", 3), ("Conv_1/kernel", 2), ("Conv_2/kernel", 3), ...],
     "block":  [("Conv_1/kernel", 3), ("Conv_2/kernel", 2), ...]}

The norm of a group of neurons belongs to it, running statistics too. State no coupling through
group norm: its channels can't move from one of its groups to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.trees import is_none, named_leaves, quoted


class Axis(NamedTuple):
    """An axis of a leaf that neurons index; of size outer * neurons * inner.

    Attributes:
      path: the leaf, as in `"Dense_0/kernel"`.
      axis: which of its axes; negative counts from the end.
      outer: how often all neurons follow one another: after flattening (height, width, channels),
        the rows of the next kernel have outer = height * width.
      inner: how many entries in a row are one neuron's: after flattening (channels, height,
        width), inner = height * width.
    """

    path: str
    axis: int
    outer: int = 1
    inner: int = 1


class Group(NamedTuple):
    """The neurons of a group: how many, and the axes that they index, none negative."""

    size: int
    axes: tuple[Axis, ...]


Coupling = Mapping[str, Sequence[Axis | tuple]]


def check_coupling(coupling: Coupling, params: Params) -> dict[str, Group]:
    """The groups of a coupling, or an error that says how it does not fit the params.

    Leaves that are None (never pruned, in masks) fit anything; a group of such leaves only is left
    out.

    Raises:
      ValueError: for a path that is not there, an axis that the leaf does not have, sizes that
        disagree, or an axis that is named twice.
      TypeError: if an entry is neither an `Axis` nor a tuple that makes one.
    """
    if not isinstance(coupling, Mapping):
        raise TypeError(
            "a coupling maps names of groups to axes, {'hidden': [('Dense_0/kernel', 1), "
            f"('Dense_1/kernel', 0)]}}; got {type(coupling).__name__}."
        )
    leaves = dict(named_leaves(params))
    groups: dict[str, Group] = {}
    owner: dict[tuple[str, int], str] = {}
    for group, entries in coupling.items():
        size: int | None = None
        axes: list[Axis] = []
        for entry in [_axis(group, entry) for entry in _entries(group, entries)]:
            leaf = _leaf(group, entry, leaves)
            if leaf is None:
                continue
            axis = _resolved(group, entry, np.shape(leaf))
            taken = owner.setdefault((axis.path, axis.axis), group)
            if taken != group or any(a[:2] == axis[:2] for a in axes):
                raise ValueError(
                    f"coupling: axis {axis.axis} of '{axis.path}' is named twice, in '{taken}' "
                    f"and in '{group}'. Each axis has one kind of neurons: join the groups, or "
                    "remove one entry."
                )
            neurons, rest = divmod(np.shape(leaf)[axis.axis], axis.outer * axis.inner)
            if rest or (size is not None and neurons != size):
                raise ValueError(_sizes_differ(group, axis, np.shape(leaf), size, axes))
            size = neurons
            axes.append(axis)
        if size is not None:
            groups[group] = Group(size, tuple(axes))
    return groups


def take(params: Params, coupling: Coupling, indices: Mapping[str, Any]) -> Params:
    """The neurons `indices[group]` of each group, in that order, along all of its axes.

    A permutation reorders the network; the indices of some neurons make a smaller one. Masks go the
    same way; None stays None. For stacks use `vmap`.

    Args:
      params: a tree that the coupling fits.
      indices: int (n,) by group; a group that is not named is left alone.
    """
    picks: dict[str, list[tuple[Axis, Any]]] = {}
    for name, group in check_coupling(coupling, params).items():
        for axis in group.axes if name in indices else ():
            picks.setdefault(axis.path, []).append((axis, indices[name]))
    leaves = [
        leaf if leaf is None else take_leaf(leaf, picks.get(path, ()))
        for path, leaf in named_leaves(params)
    ]
    return jax.tree.unflatten(jax.tree.structure(params, is_leaf=is_none), leaves)


def front(x: Any, axis: Axis) -> Any:
    """`x` as (neurons, all else); `x` a numpy or a jax array."""
    parts = _split(x, axis)
    return _xp(x).moveaxis(parts, axis.axis + 1, 0).reshape(parts.shape[axis.axis + 1], -1)


def take_leaf(x: Any, picks: Sequence[tuple[Axis, Any]]) -> Any:
    """One leaf with the neurons `indices` along each axis of `picks`: (axis, indices) pairs."""
    for axis, indices in picks:
        picked = _xp(x).take(_split(x, axis), indices, axis.axis + 1)
        x = picked.reshape(*x.shape[: axis.axis], -1, *x.shape[axis.axis + 1 :])
    return x


def _xp(x: Any) -> Any:
    return jnp if isinstance(x, jax.Array) else np


def _split(x: Any, axis: Axis) -> Any:
    """`x` with its axis as three: outer, neurons, inner."""
    parts = (axis.outer, x.shape[axis.axis] // (axis.outer * axis.inner), axis.inner)
    return x.reshape(x.shape[: axis.axis] + parts + x.shape[axis.axis + 1 :])


def _entries(group: Any, entries: Any) -> Sequence[Any]:
    if isinstance(entries, (str, Axis)) or not isinstance(entries, Sequence) or not entries:
        raise TypeError(
            f"coupling: group {group!r} is a list of axes, such as [('Dense_0/kernel', 1), "
            f"('Dense_1/kernel', 0)]; got {entries!r}."
        )
    return entries


def _axis(group: Any, entry: Any) -> Axis:
    is_axis = (
        isinstance(entry, Sequence)
        and not isinstance(entry, str)
        and 2 <= len(entry) <= 4
        and isinstance(entry[0], str)
        and all(isinstance(n, int) and not isinstance(n, bool) for n in entry[1:])
    )
    if not is_axis or min(entry[2:], default=1) < 1:
        raise TypeError(
            f"coupling: an axis of group {group!r} is (path, axis), or Axis(path, axis, outer, "
            f"inner) with outer and inner at least 1; got {entry!r}."
        )
    return Axis(*entry)


def _leaf(group: Any, axis: Axis, leaves: Mapping[str, Any]) -> Any:
    if axis.path not in leaves:
        raise ValueError(
            f"coupling: group '{group}' names '{axis.path}', which is no leaf of these params: "
            f"{quoted(leaves.items())}."
        )
    return leaves[axis.path]


def _resolved(group: Any, axis: Axis, shape: tuple[int, ...]) -> Axis:
    if not -len(shape) <= axis.axis < len(shape):
        raise ValueError(
            f"coupling: group '{group}' names axis {axis.axis} of '{axis.path}', which has shape "
            f"{shape}."
        )
    return axis._replace(axis=axis.axis % len(shape))


def _sizes_differ(
    group: Any, axis: Axis, shape: tuple[int, ...], size: int | None, others: list[Axis]
) -> str:
    each = axis.outer * axis.inner
    holds = f"{shape[axis.axis]}" if each == 1 else f"{shape[axis.axis]} = {each} x neurons"
    there = f"axis {axis.axis} of '{axis.path}' (shape {shape}) has size {holds}"
    if size is None or not others:
        return (
            f"coupling: {there} in group '{group}', which {each} does not divide. Correct its "
            "outer or inner."
        )
    axis = others[0]
    return (
        f"coupling: {there}, but group '{group}' has {size} neurons, by axis {axis.axis} of "
        f"'{axis.path}'. Axes of one group are indexed by the same neurons; after flattening give "
        "Axis(path, axis, outer=height * width). If the params have a leading axis of seeds, use "
        "vmap."
    )
