"""Leaves in as few arrays as possible: the layers of a stack are read together, where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.selection.counting import n_true
from jaxprune.selection.deferred import Layer, cut, defer, stacked_places, written
from jaxprune.trees import map_scored


class Uncut(NamedTuple):
    """Leaves in one array: all layers of a stack, or one leaf.

    Attributes:
      array: an array, or `Deferred`.
      axes: the stacked axes, ascending; () for one leaf.
      places: the place of each layer among all leaves, in the order of the axes.
    """

    array: Any
    axes: tuple[int, ...]
    places: list[int]

    @property
    def inner(self) -> tuple[int, ...]:
        """The axes of one layer."""
        return tuple(axis for axis in range(self.array.ndim) if axis not in self.axes)

    def spread(self, of_leaves: jax.Array) -> jax.Array:
        """The numbers of these layers, from (leaves,); they broadcast against the array."""
        if not self.axes:
            return of_leaves[self.places[0]]
        sizes = [n if axis in self.axes else 1 for axis, n in enumerate(self.array.shape)]
        return of_leaves[np.array(self.places)].reshape(sizes)

    def in_a_row(self) -> jax.Array:
        """The layers one after the other, (layers, *shape of a layer)."""
        array = jnp.asarray(self.array)
        first = jnp.moveaxis(array, self.axes, range(len(self.axes)))
        return first.reshape(len(self.places), *(array.shape[axis] for axis in self.inner))

    def parts(self, array: jax.Array) -> list[Any]:
        """The layers of an array of this shape."""
        if not self.axes:
            return [array]
        return cut(array, self.axes, [array.shape[axis] for axis in self.axes])


def uncut(leaves: Sequence[Any]) -> list[Uncut]:
    """The leaves in groups; a stack is one group if all of its layers are among the leaves."""
    stacks: dict[Any, list[int]] = {}
    for place, leaf in enumerate(leaves):
        key = ("stack", id(leaf.stack)) if isinstance(leaf, Layer) else ("leaf", place)
        stacks.setdefault(key, []).append(place)
    groups: list[Uncut] = []
    for places in stacks.values():
        layers = [leaves[place] for place in places]
        order = stacked_places(layers) if isinstance(layers[0], Layer) else None
        if order is None:
            groups += [Uncut(leaves[place], (), [place]) for place in places]
        else:
            axes = layers[0].place.axes
            groups.append(Uncut(layers[0].stack, axes, [places[i] for i in order]))
    return groups


def in_order(groups: Sequence[Uncut], values: Sequence[jax.Array]) -> jax.Array:
    """The numbers (layers, ...) of the groups as numbers of all leaves, in their order."""
    order = np.argsort([place for group in groups for place in group.places])
    together = jnp.concatenate(values)
    return together if (order == np.arange(len(order))).all() else together[order]


def counts_of(masks: Any) -> Any:
    """How many are True in each leaf (arrays, or deferred): int32 scalars like `masks`."""
    leaves, treedef = jax.tree.flatten(masks)
    if not leaves:
        return masks
    groups = uncut(leaves)
    counts = [n_true(jnp.asarray(g.array), axes=g.inner)[0].reshape(-1) for g in groups]
    return jax.tree.unflatten(treedef, list(in_order(groups, counts)))


def elementwise(f: Callable[..., jax.Array], *trees: Any) -> Any:
    """`f` of each leaf, None where the first tree has None; once for all layers of a stack."""
    if any(isinstance(leaf, Layer) for leaf in jax.tree.leaves(trees)):
        return written(defer(partial(map_scored, f), *trees))
    return map_scored(f, *trees)
