"""Neurons that go to the last one, and what goes with them: axes, branches, blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Scores
from jaxprune.coupling.simplify import Simplify
from jaxprune.coupling.structure import Structure
from jaxprune.structured.kept import Kept, KeptLike, Removal, check_kept
from jaxprune.structured.reduced import Reduced, reduced
from jaxprune.trees import named_leaves, present_leaves


def collapse_emptied(structure: Structure, kept: KeptLike) -> Removal:
    """`kept` with groups that keep no neuron: their axes vanish, and what nothing reads then.

        small = compact(structure, params, collapse_emptied(structure, kept))

    All that is behind an empty axis is a constant, such as the bias of the layer that has read it,
    and stays: the compacted network is the masked one. `remove_emptied` removes the whole branch.

    Args:
      structure: of `analyze`.
      kept: bool (size,) by group, True = kept, not traced; all of them may be False. Or a
        `Removal`, to which this is added.

    Returns:
      What `compact`, `shrink`, `replay`, `masks` and `cost` take in the place of `kept`.

    Raises:
      ValueError: if an output depends on no input any more; it names the groups.
    """
    return _removal(allowed(structure, kept))


def remove_emptied(structure: Structure, kept: KeptLike) -> Removal:
    """`kept` with groups that keep no neuron, whose branches are removed.

        small = compact(structure, params, remove_emptied(structure, kept))

    Where a layer of a residual branch, x + f(x), has no neuron left, f computes a constant: f is
    removed, with its biases, its norms and all of its other layers, and x is left. Segments of a
    concatenation that only such layers have written to go too. The masked network that a compacted
    one is equal to has zeros in all of `removed`: it differs from the network before by that
    constant. A constant that is neither added nor concatenated (the gate of squeeze and excite)
    stays.

    Args, Returns, Raises: as `collapse_emptied`.

    Reference: Larson et al., 2023, A Generalization of Continuous Relaxation in Structured Pruning.
    """
    left = allowed(structure, kept)
    if not left.removed and all(mask.any() for mask in left.neurons.values()):
        return Removal(dict(left.neurons), ())
    while True:
        run = Simplify(left.atoms, drop=True)
        read = _reduced(left, run)
        more = {
            name: np.zeros(atom.size, bool)
            for name, atom in structure.atoms.items()
            if atom in run.joined
            and atom not in run.in_use
            and left.neurons.get(name, np.True_).any()
        }
        if not more:
            return _removal(replace(left, removed=_unread(structure, read)))
        left = replace(left, neurons={**left.neurons, **more})


def remove_blocks(
    structure: Structure, blocks: Sequence[str], kept: KeptLike | None = None
) -> Removal:
    """Without these blocks: their leaves go, and the function is that with zeros in their place.

        small = compact(structure, params, remove_blocks(structure, ["BasicBlock_3"]))

    A block that adds to a residual stream adds zero then: it disappears from the program, and the
    rest is, bit for bit, the network in which its leaves are zero.

    Args:
      structure: of `analyze`.
      blocks: names of modules: whole parts of paths, such as "BasicBlock_3" or "encoder/layer_2".
        `removable_blocks` lists those that can go.
      kept: which neurons of the others are left, or a `Removal`; None for all.

    Returns: as `collapse_emptied`.

    Raises:
      ValueError: if there is no such block, or without it an output depends on no input any more:
        there is no path around it, as around one whose shortcut is a projection.

    Reference: Jordao et al., 2023, When Layers Play the Lottery, all Tickets Win at Initialization.
    """
    left = check_kept(structure, {} if kept is None else kept)
    zero = {path for paths in weights_of(structure, blocks).values() for path in paths}
    return _removal(replace(left, removed=(*left.removed, *zero)), blocks)


def removable_blocks(structure: Structure, blocks: Sequence[str]) -> list[str]:
    """The `blocks` without which every output still depends on the inputs, one at a time.

    Args:
      structure: of `analyze`.
      blocks: names of modules, as in `remove_blocks`.

    Raises:
      ValueError: if there is no such block.
    """

    def depends(zero: Sequence[str]) -> list[bool]:
        return _reduced(Kept(structure, {}, tuple(zero)), Simplify({})).depends

    before = depends(())
    removable = []
    for block, zero in weights_of(structure, blocks).items():
        if all(now or not then for now, then in zip(depends(zero), before, strict=True)):
            removable.append(block)
    return removable


def block_scores(scores: Scores, blocks: Sequence[str]) -> dict[str, jax.Array]:
    """What each block is worth: the sum of the scores of its weights, float32 scalars.

        block_scores(snip(loss, params), blocks)              |w dL/dw|, at initialization
        block_scores(grasp(loss, params), blocks)             signed: higher = keep, as everywhere
        block_scores(magnitude(kernels(params)), blocks)

    The lowest go: `sorted(scores, key=scores.get)[:n]`, for `remove_blocks`.

    Args:
      scores: like the params; None where a leaf has none.
      blocks: names of modules: whole parts of paths, such as "BasicBlock_3".

    Raises:
      ValueError: if a block is not there, or none of its leaves has a score.

    Reference: Jordao et al., 2023, When Layers Play the Lottery, all Tickets Win at Initialization.

    >>> import jax.numpy as jnp
    >>> scores = {'block_0': {'kernel': jnp.ones((2, 2)), 'bias': None}, 'head': jnp.ones(3)}
    >>> float(block_scores(scores, ['block_0'])['block_0'])
    4.0
    """
    leaves = dict(named_leaves(scores))
    worth = {}
    for block, paths in _leaves_of(leaves, blocks).items():
        scored = [leaves[path] for path in paths if leaves[path] is not None]
        if not scored:
            raise ValueError(
                f"block_scores: no leaf of block '{block}' has a score: {', '.join(paths)} are "
                "None. Score what says what it is worth, such as magnitude(kernels(params))."
            )
        worth[block] = jnp.stack([s.sum(dtype=jnp.float32) for s in scored]).sum()
    return worth


def _leaves_of(paths: Iterable[str], blocks: Sequence[str]) -> dict[str, list[str]]:
    """The paths in each block: those that have its name as whole parts; an error if none has."""
    if isinstance(blocks, str) or not all(isinstance(block, str) for block in blocks):
        raise TypeError(
            f'blocks is a list of names of modules, such as ["BasicBlock_3"]; got {blocks!r}.'
        )
    paths = list(paths)
    leaves: dict[str, list[str]] = {}
    for block in blocks:
        leaves[block] = [path for path in paths if f"/{block.strip('/')}/" in f"/{path}/"]
        if not leaves[block]:
            modules = dict.fromkeys(path.rpartition("/")[0] for path in paths)
            some = [repr(module) for module in modules if module][:12]
            raise ValueError(
                f"there is no block {block!r}: no path of a leaf has it as whole parts. The "
                f"modules are {', '.join(some)}{', ...' if len(modules) > 12 else ''}."
            )
    return leaves


def weights_of(structure: Structure, blocks: Sequence[str]) -> dict[str, list[str]]:
    """The leaves of each block that may be zero: floats, not keys or counts."""
    shapes = dict(named_leaves(structure.shapes))
    is_real = lambda path: jnp.issubdtype(shapes[path].dtype, jnp.inexact)
    return {
        block: list(filter(is_real, paths))
        for block, paths in _leaves_of(structure.axes, blocks).items()
    }


def allowed(structure: Structure, kept: KeptLike) -> Kept:
    """`kept`, checked; its groups may keep nothing."""
    if not isinstance(kept, (Removal, Kept)):
        kept = Removal(kept, ())
    return check_kept(structure, kept)


def _removal(left: Kept, blocks: Sequence[str] = ()) -> Removal:
    """With all that is not read any more, or an error if too much is gone."""
    structure, neurons = left.structure, dict(left.neurons)
    before = _reduced(Kept(structure, {}), Simplify({}))
    after = _reduced(left, Simplify(left.atoms))
    outputs = [path or "0" for path, _ in present_leaves(structure.outputs)]
    for path, then, now in zip(outputs, before.depends, after.depends, strict=True):
        if then and not now:
            emptied = [f"group '{name}'" for name, mask in neurons.items() if not mask.any()]
            without = ", ".join([*(f"block '{name}'" for name in blocks), *emptied])
            raise ValueError(
                f"output {path} depends on no input any more without {without}: there is no path "
                "around what was removed. Keep a neuron of each layer that has no shortcut around "
                "it; removable_blocks(structure, blocks) says which blocks can go."
            )
    never_read = _unread(structure, before)
    shapes = dict(named_leaves(structure.shapes))
    removed = tuple(
        path
        for path in _unread(structure, after)
        if path not in never_read and not jnp.issubdtype(shapes[path].dtype, jax.dtypes.extended)
    )
    for name, group in structure.groups.items():
        if all(member.path in removed for member in group.members):
            neurons[name] = np.zeros(group.size, bool)
    return Removal(neurons, removed)


def _reduced(left: Kept, run: Simplify) -> Reduced:
    """The analyzed program on what is left."""
    shapes = dict(named_leaves(left.params()))
    leaves = [shapes[path] for path in left.structure.axes]
    return reduced(left.structure.program, run, leaves, jax.tree.leaves(left.inputs()))


def _unread(structure: Structure, left: Reduced) -> tuple[str, ...]:
    """The leaves that are not read."""
    pairs = zip(structure.axes, left.read, strict=False)
    return tuple(path for path, is_read in pairs if not is_read)
