"""Neurons that go to the last one, and what goes with them: axes, branches, blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.coupling.simplify import Simplify
from jaxprune.coupling.structure import Structure
from jaxprune.structured.blocks import leaves_of
from jaxprune.structured.kept import Kept, Removal, known, removed
from jaxprune.structured.reduced import Reduced, reduced, small_inputs, small_shapes
from jaxprune.trees import named_leaves


def collapse_emptied(structure: Structure, kept: Kept) -> Removal:
    """`kept` with groups that keep no neuron: their axes vanish, and what nothing reads then.

        small = compact(structure, params, collapse_emptied(structure, kept))

    All that is behind an empty axis is a constant, such as the bias of the layer that has read it,
    and stays: the compacted network is the masked one. To be rid of the whole branch see
    `remove_emptied`.

    Args:
      structure: of `analyze`.
      kept: bool (size,) by group, True = kept, not traced; all of them may be False. Or a
        `Removal`, to which this is added.

    Returns:
      What `compact`, `shrink`, `replay`, `masks` and `cost` take in the place of `kept`.

    Raises:
      ValueError: if an output depends on no input any more; it names the groups.
    """
    return _removal(structure, _allowed(structure, kept), removed(kept))


def remove_emptied(structure: Structure, kept: Kept) -> Removal:
    """`kept` with groups that keep no neuron, whose branches go altogether.

        small = compact(structure, params, remove_emptied(structure, kept))

    A residual branch, x + f(x), of which some layer has no neuron left computes a constant: f is
    removed, with its biases, its norms and all of its other layers, and x is left. Segments of a
    concatenation that only such layers have written to go too. The masked network that a compacted
    one is equal to has zeros in all of `removed`: it is another one than before, by that constant.
    Where a constant is neither added nor concatenated (the gate of squeeze and excite) it stays.

    Args, Returns, Raises: as `collapse_emptied`.

    Reference: Larson et al., 2023, A Generalization of Continuous Relaxation in Structured Pruning.
    """
    own = _allowed(structure, kept)
    while True:
        run = _simplify(structure, own, drop=True)
        left = _reduced(structure, run, removed(kept))
        more = [
            name
            for name, atom in structure.atoms.items()
            if atom in run.joined and atom not in run.in_use and own.get(name, np.True_).any()
        ]
        if not more:
            return _removal(structure, own, _unread(structure, left))
        own |= {name: np.zeros(structure.groups[name].size, bool) for name in more}


def remove_blocks(structure: Structure, blocks: Sequence[str], kept: Kept | None = None) -> Removal:
    """Without these blocks: their leaves go, and the function is that with zeros in their place.

        small = compact(structure, params, remove_blocks(structure, ["BasicBlock_3"]))

    A block that adds to a residual stream adds zero then: it disappears from the program, and what
    is left is, bit for bit, the network in which its leaves are zero.

    Args:
      structure: of `analyze`.
      blocks: names of modules: whole parts of paths, such as "BasicBlock_3" or "encoder/layer_2".
        `removable_blocks` lists those that can go.
      kept: which neurons are left of the others, or a `Removal`; None for all.

    Returns: as `collapse_emptied`.

    Raises:
      ValueError: if there is no such block, or without it an output depends on no input any more:
        there is no path around it, as around one whose shortcut is a projection.

    Reference: Jordao et al., 2023, When Layers Play the Lottery, all Tickets Win at Initialization.
    """
    kept = {} if kept is None else kept
    zero = {path for own in _weights_of(structure, blocks).values() for path in own}
    return _removal(structure, known(structure, kept), zero | {*removed(kept)}, blocks)


def removable_blocks(structure: Structure, blocks: Sequence[str]) -> list[str]:
    """Those of `blocks` without which every output still depends on the inputs, one at a time.

    Args:
      structure: of `analyze`.
      blocks: names of modules, as in `remove_blocks`.

    Raises:
      ValueError: if there is no such block.
    """
    before = _reduced(structure, _simplify(structure, {}), ()).depends
    found = []
    for block, zero in _weights_of(structure, blocks).items():
        after = _reduced(structure, _simplify(structure, {}), zero).depends
        if all(now or not then for now, then in zip(after, before, strict=True)):
            found.append(block)
    return found


def _weights_of(structure: Structure, blocks: Sequence[str]) -> dict[str, list[str]]:
    """The leaves of each block that may be zero: those of floats, not keys or counts."""
    leaves = dict(named_leaves(structure.shapes))
    is_real = lambda path: jnp.issubdtype(leaves[path].dtype, jnp.inexact)
    found = leaves_of(structure.axes, blocks)
    return {block: [path for path in own if is_real(path)] for block, own in found.items()}


def _allowed(structure: Structure, kept: Kept) -> dict[str, np.ndarray]:
    """`kept` as numpy arrays; groups of it may keep nothing."""
    return known(structure, Removal(kept, ()) if isinstance(kept, Mapping) else kept)


def _removal(
    structure: Structure,
    kept: dict[str, Any],
    zero: Collection[str],
    blocks: Sequence[str] = (),
) -> Removal:
    """With all that is not read any more, or an error if too much is gone."""
    before = _reduced(structure, _simplify(structure, {}), ())
    after = _reduced(structure, _simplify(structure, kept), zero)
    outputs = [path or "0" for path, x in named_leaves(structure.outputs) if x is not None]
    for path, then, now in zip(outputs, before.depends, after.depends, strict=True):
        if then and not now:
            emptied = [f"group '{name}'" for name, own in kept.items() if not own.any()]
            without = ", ".join([*(f"block '{name}'" for name in blocks), *emptied])
            raise ValueError(
                f"output {path} depends on no input any more without {without}: there is no path "
                "around what was removed. Keep a neuron of each layer that has no shortcut around "
                "it; removable_blocks(structure, blocks) says which blocks can go."
            )
    was_read = {path for path, own in zip(structure.axes, before.read, strict=False) if own}
    dtypes = {path: x.dtype for path, x in named_leaves(structure.shapes) if x is not None}
    gone = tuple(
        path
        for path in _unread(structure, after)
        if path in was_read and not jnp.issubdtype(dtypes[path], jax.dtypes.extended)
    )
    for name, group in structure.groups.items():
        if all(member.path in gone for member in group.members):
            kept = {**kept, name: np.zeros(group.size, bool)}
    return Removal(kept, gone)


def _simplify(structure: Structure, kept: Mapping[str, Any], drop: bool = False) -> Simplify:
    return Simplify({structure.atoms[name]: own for name, own in kept.items()}, drop)


def _reduced(structure: Structure, run: Simplify, zero: Collection[str]) -> Reduced:
    shapes = dict(named_leaves(small_shapes(structure, run, zero)))
    inputs = jax.tree.leaves(small_inputs(structure, run))
    return reduced(structure.program, run, [shapes[path] for path in structure.axes], inputs)


def _unread(structure: Structure, left: Reduced) -> list[str]:
    """The leaves that are not read."""
    return [path for path, own in zip(structure.axes, left.read, strict=False) if not own]
