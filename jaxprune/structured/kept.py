"""Which neurons are kept: checked, as masks of the params, and read off masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, is_known
from jaxprune.coupling.expressions import kept_entries
from jaxprune.coupling.structure import Structure
from jaxprune.structured.check import check_params
from jaxprune.structured.slices import slices
from jaxprune.trees import is_none, named_leaves, quoted


class Removal(NamedTuple):
    """Which neurons are kept, where groups may keep none; it goes wherever `kept` does.

    Attributes:
      kept: bool (size,) by group, True = kept; of a group not there all are.
      removed: paths of leaves that nothing reads any more: zeros in a masked network, and None in
        the params of a compacted one.
    """

    kept: Mapping[str, Any]
    removed: tuple[str, ...]


# bool (size,) by group, True = kept; of a group not there all are
Kept = Mapping[str, Any] | Removal


def check_kept(structure: Structure, kept: Kept) -> dict[str, Any]:
    """What is kept of each group, or an error that says how it does not fit the structure.

    Raises:
      ValueError: for a group or a removed leaf that is not there, a size that differs, or (where
        values are known, and it is no `Removal`) a group that keeps nothing.
      TypeError: if it is no mapping of bool arrays.
    """
    may_be_empty = isinstance(kept, Removal)
    if isinstance(kept, Removal):
        unknown = [(path, None) for path in kept.removed if path not in structure.axes]
        if unknown:
            raise ValueError(f"removed names {quoted(unknown)}, no leaves that were analyzed.")
        kept = kept.kept
    if not isinstance(kept, Mapping):
        raise TypeError(
            "kept maps names of groups to bool arrays (size,), True = kept, as pick returns it; "
            f"got {type(kept).__name__}."
        )
    for name, own in kept.items():
        n = structure.size_of(name)
        if np.dtype(getattr(own, "dtype", object)) != bool:
            raise TypeError(
                f"kept of group '{name}' is a bool array of shape ({n},), True = kept; got "
                f"{getattr(own, 'dtype', type(own).__name__)}. From indices: "
                f"np.isin(np.arange({n}), indices)."
            )
        if np.shape(own) != (n,):
            raise ValueError(
                f"kept of group '{name}' has shape {np.shape(own)}, its neurons are ({n},)."
            )
        if not (may_be_empty or not is_known(own) or np.any(own)):
            raise ValueError(
                f"kept leaves no neuron of group '{name}', and with it no path through "
                f"{structure.groups[name].members[0]}: keep at least one, or say what becomes of "
                "its branch: remove_emptied(structure, kept) removes it, "
                "collapse_emptied(structure, kept) leaves its biases."
            )
    return dict(kept)


def known(structure: Structure, kept: Kept) -> dict[str, np.ndarray]:
    """`kept`, checked, as numpy arrays.

    Raises:
      TypeError: under `jit`, where values are not known and shapes can't depend on them.
    """
    kept = check_kept(structure, kept)
    for name, own in kept.items():
        if not is_known(own):
            raise TypeError(
                f"the sizes of the small network depend on kept['{name}'], which is traced: pick "
                "and compact outside of jit. Masks (structured.masks) work inside."
            )
    return {name: np.asarray(own) for name, own in kept.items()}


def removed(kept: Kept) -> tuple[str, ...]:
    """The leaves that are removed altogether."""
    return kept.removed if isinstance(kept, Removal) else ()


def masks(structure: Structure, kept: Kept) -> Masks:
    """Masks of the params: an entry is kept if every neuron that it belongs to is.

    An ordinary tree of masks, for `fixed`, `apply_masks` and all else; leaves without a neuron of
    any group are None. Traced `kept` work too. They are like what was analyzed: of Flax's variables
    an optimizer of the params takes `masks(structure, kept)["params"]`.

    Args:
      kept: bool (size,) by group; of a group that is not named all are kept. Or a `Removal`, of
        which no entry is kept of the leaves that are removed.

    Raises:
      ValueError, TypeError: if `kept` does not fit the structure.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((1, 3)), 'b': jnp.ones((3, 2))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 1)))
    >>> masks(structure, {'a': jnp.array([True, True, False])})['a']
    Array([[ True,  True, False]], dtype=bool)
    """
    gone = removed(kept)
    kept = check_kept(structure, kept)
    traced = not is_known(kept)
    xp: Any = jnp if traced else np  # numpy compiles nothing
    of_atoms = {structure.atoms[name]: xp.asarray(own) for name, own in kept.items()}

    def mask(path: str, leaf: Any) -> Any:
        if path in gone:
            return jnp.zeros(leaf.shape, bool)
        if leaf is None or not _members(structure, path):
            return None
        whole = xp.ones(leaf.shape, bool)
        for i, e in enumerate(structure.axes[path]):
            others = tuple(j for j in range(len(leaf.shape)) if j != i)
            whole = whole & xp.expand_dims(kept_entries(e, of_atoms, xp), others)
        return jnp.asarray(whole)

    leaves = [mask(path, leaf) for path, leaf in named_leaves(structure.shapes)]
    return jax.tree.unflatten(jax.tree.structure(structure.shapes, is_leaf=is_none), leaves)


def kept(structure: Structure, masks: Masks) -> dict[str, jax.Array]:
    """The neurons of which some entry is kept, bool (size,) by group: the inverse of `masks`.

    Of masks that prune single weights too, those neurons are not kept that are masked altogether.

    Args:
      masks: like the params, or a part of them, such as those without `batch_stats`.

    Raises:
      ValueError: if the masks do not fit the params.
    """
    prefix = check_params("structured.kept", structure, masks)
    leaves = named_leaves(masks)
    traced = not is_known(masks)
    xp: Any = jnp if traced else np  # numpy compiles nothing
    masks_of = {prefix + path: None if m is None else xp.asarray(m) for path, m in leaves}
    found = {}
    for name, group in structure.groups.items():
        some = [own.any(1) for own in slices(structure, name, masks_of).values()]
        found[name] = jnp.asarray(xp.stack(some or [xp.ones(group.size, bool)]).any(0))
    return found


def _members(structure: Structure, path: str) -> bool:
    """Whether some group is on an axis of this leaf."""
    return any(member.path == path for group in structure.groups.values() for member in group[1])
