"""Which neurons are kept: one value, checked once, as masks of the params, and read off masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, Params, is_known
from jaxprune.coupling.expressions import Atom, kept_entries
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.structure import Structure
from jaxprune.structured.check import check_params, slices
from jaxprune.trees import map_named, named_leaves, quoted, with_leaves


class Removal(NamedTuple):
    """Which neurons are kept, where groups may keep none; it goes wherever `kept` does.

    Attributes:
      kept: bool (size,) by group, True = kept; a group that is not there keeps all.
      removed: paths of leaves that nothing reads any more: zeros in a masked network, and None in
        the params of a compacted one.
    """

    kept: Mapping[str, Any]
    removed: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Kept:
    """What is left of a structure: neurons, axes, leaves and inputs. `check_kept` makes it.

    Attributes:
      structure: of `analyze`.
      neurons: bool (size,) by group, True = kept; a group that is not there keeps all.
      removed: paths of the leaves that are removed.
      is_removal: whether it was given as a `Removal`, of which groups may keep nothing.
    """

    structure: Structure
    neurons: Mapping[str, Any]
    removed: tuple[str, ...] = ()
    is_removal: bool = True

    @property
    def atoms(self) -> dict[Atom, Any]:
        """`neurons`, by atom of the axis expressions."""
        return {self.structure.atoms[name]: mask for name, mask in self.neurons.items()}

    @cached_property
    def axes(self) -> Keep:
        """What is left of axes, shapes, arrays and programs; the neurons are not traced."""
        return Keep(self.atoms)

    def params(self) -> Params:
        """What is left of the params, as `jax.ShapeDtypeStruct`; None where a leaf is removed."""

        def left(path: str, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct | None:
            if path in self.removed:
                return None
            return jax.ShapeDtypeStruct(self.axes.shape(self.structure.axes[path]), x.dtype)

        return map_named(left, self.structure.shapes)

    def inputs(self) -> Any:
        """The example inputs, with what is left of their sliceable axes."""
        leaves, treedef = jax.tree.flatten(self.structure.inputs)
        axes = self.structure.program.in_axes[len(self.structure.axes) :]
        pairs = zip(leaves, axes, strict=True)
        small = [jax.ShapeDtypeStruct(self.axes.shape(a), x.dtype) if a else x for x, a in pairs]
        return jax.tree.unflatten(treedef, small)

    def n_neurons(self) -> int:
        """How many neurons are left, of all groups together."""
        pruned = sum(int((~mask).sum()) for mask in self.neurons.values())
        return sum(group.size for group in self.structure.groups.values()) - pruned


# bool (size,) by group, True = kept; a group that is not there keeps all
KeptLike = Mapping[str, Any] | Removal | Kept


def check_kept(structure: Structure, kept: KeptLike, traced: bool = False) -> Kept:
    """The neurons that are kept, as numpy arrays, or an error that says how they do not fit.

    Args:
      traced: whether the neurons may be traced; then they stay as they are.

    Raises:
      ValueError: for a group or a removed leaf that is not there, a size that differs, or (where
        values are known, and it is no `Removal`) a group that keeps nothing.
      TypeError: if it is no mapping of bool arrays, or if they are traced and may not be.
    """
    if isinstance(kept, Kept):
        return kept
    removed: tuple[str, ...] = ()
    is_removal = isinstance(kept, Removal)
    if isinstance(kept, Removal):
        removed = tuple(kept.removed)
        kept = kept.kept
        unknown = [(path, None) for path in removed if path not in structure.axes]
        if unknown:
            raise ValueError(f"removed names {quoted(unknown)}, no leaves that were analyzed.")
    if not isinstance(kept, Mapping):
        raise TypeError(
            "kept maps names of groups to bool arrays (size,), True = kept, as pick returns it; "
            f"got {type(kept).__name__}."
        )
    for name, mask in kept.items():
        _check_group(structure, name, mask, is_removal)
        if not (traced or is_known(mask)):
            raise TypeError(
                f"the sizes of the small network depend on kept['{name}'], which is traced: pick "
                "and compact outside of jit. Masks (structured.masks) work inside."
            )
    neurons = dict(kept) if traced else {name: np.asarray(mask) for name, mask in kept.items()}
    return Kept(structure, neurons, removed, is_removal)


def _check_group(structure: Structure, name: str, mask: Any, may_be_empty: bool) -> None:
    n = structure.size_of(name)
    if np.dtype(getattr(mask, "dtype", object)) != bool:
        raise TypeError(
            f"kept of group '{name}' is a bool array of shape ({n},), True = kept; got "
            f"{getattr(mask, 'dtype', type(mask).__name__)}. From indices: "
            f"np.isin(np.arange({n}), indices)."
        )
    if np.shape(mask) != (n,):
        raise ValueError(
            f"kept of group '{name}' has shape {np.shape(mask)}, its neurons are ({n},)."
        )
    if not (may_be_empty or not is_known(mask) or np.any(mask)):
        raise ValueError(
            f"kept leaves no neuron of group '{name}', and with it no path through "
            f"{structure.groups[name].members[0]}: keep at least one, or say what becomes of "
            "its branch: remove_emptied(structure, kept) removes it, "
            "collapse_emptied(structure, kept) leaves its biases."
        )


def masks(structure: Structure, kept: KeptLike) -> Masks:
    """Masks of the params: an entry is kept if every neuron that it belongs to is kept.

    It is a tree of masks as others, for `fixed` and `apply_masks`; leaves without a neuron of any
    group are None. `kept` may be traced. The masks are like the params that were analyzed: with
    Flax's variables, an optimizer of the params takes `masks(structure, kept)["params"]`.

    Args:
      kept: bool (size,) by group; a group that is not named keeps all. Or a `Removal`: nothing is
        kept of the leaves that are removed.

    Raises:
      ValueError, TypeError: if `kept` does not fit the structure.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((1, 3)), 'b': jnp.ones((3, 2))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 1)))
    >>> masks(structure, {'a': jnp.array([True, True, False])})['a']
    Array([[ True,  True, False]], dtype=bool)
    """
    left = check_kept(structure, kept, traced=True)
    xp: Any = np if is_known(left.neurons) else jnp  # numpy compiles nothing
    of_atoms = {atom: xp.asarray(mask) for atom, mask in left.atoms.items()}
    in_groups = {path for group in structure.groups.values() for path, _ in group.members}

    def mask(path: str, leaf: Any) -> Any:
        if path in left.removed:
            return jnp.zeros(leaf.shape, bool)
        if leaf is None or path not in in_groups:
            return None
        entries = xp.ones(leaf.shape, bool)
        for i, e in enumerate(structure.axes[path]):
            others = tuple(j for j in range(len(leaf.shape)) if j != i)
            entries = entries & xp.expand_dims(kept_entries(e, of_atoms, xp), others)
        return jnp.asarray(entries)

    leaves = [mask(path, leaf) for path, leaf in named_leaves(structure.shapes)]
    return with_leaves(structure.shapes, leaves)


def kept(structure: Structure, masks: Masks) -> dict[str, jax.Array]:
    """The neurons of which some entry is kept, bool (size,) by group: the inverse of `masks`.

    Masks may prune single weights too: a neuron is pruned only where all of its entries are.

    Args:
      masks: like the params, or a part of them, such as those without `batch_stats`.

    Raises:
      ValueError: if the masks do not fit the params.
    """
    prefix = check_params("structured.kept", structure, masks)
    xp: Any = np if is_known(masks) else jnp  # numpy compiles nothing
    leaves = {
        prefix + path: None if mask is None else xp.asarray(mask)
        for path, mask in named_leaves(masks)
    }
    neurons = {}
    for name, group in structure.groups.items():
        some = [rows.any(1) for rows in slices(structure, name, leaves).values()]
        neurons[name] = jnp.asarray(xp.stack(some or [xp.ones(group.size, bool)]).any(0))
    return neurons
