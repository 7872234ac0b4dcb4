"""Neurons ranked among groups of a kind: one threshold for groups on axes of the same kinds."""

from __future__ import annotations

from jaxprune.allocation.layerwise import global_threshold
from jaxprune.base import Allocation, Scores, Sparsities, Sparsity
from jaxprune.coupling.reader import Program
from jaxprune.coupling.structure import Structure

Signature = tuple[tuple[str, int, int], ...]  # of each member


def isomorphic(structure: Structure) -> Allocation:
    """One threshold over the scores of all groups with the same `signature`; for `pick`.

    Scores of neurons compare where they are made of the same kinds of slices: neurons between two
    convolutions, or neurons of a residual stream. Each such pool loses the same share,
    `round(sparsity * neurons)`, where its scores are lowest. It lies between `uniform`, where each
    group is alone, and `global_threshold`.

    Args:
      structure: of `analyze`, for scores of its groups.

    Raises:
      ValueError: (when used) if scores are not of these groups.

    Reference: Fang et al., 2024, Isomorphic Pruning for Vision Models.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((1, 2)), 'b': jnp.ones((2, 2)), 'c': jnp.ones((2, 1))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'] @ p['c'], params, jnp.ones((1, 1)))
    >>> pruned = isomorphic(structure)({'a': jnp.array([1., 2]), 'b': jnp.array([3., 4])}, 0.5)
    >>> {name: int(n) for name, n in pruned.items()}
    {'a': 2, 'b': 0}
    """
    pools: dict[Signature, list[str]] = {}
    for name, signature in signatures(structure).items():
        pools.setdefault(signature, []).append(name)

    def allocation(scores: Scores, sparsity: Sparsity) -> Sparsities:
        if not isinstance(scores, dict) or not set(scores) <= set(structure.groups):
            raise ValueError(
                "isomorphic(structure) allocates among the groups of its structure, "
                f"{list(structure.groups)}; got scores of {list(scores)}."
            )
        pruned: Sparsities = {}
        for names in pools.values():
            pool = {name: scores[name] for name in names if name in scores}
            pruned |= global_threshold(pool, sparsity) if pool else {}
        return {name: pruned[name] for name in scores}

    return allocation


def signatures(structure: Structure) -> dict[str, Signature]:
    """{group: (primitive, rank, axis) of each member, in the order of the data}.

    The primitive is the first that reads the member's leaf. Sizes do not matter, nor do names.
    """
    readers: dict[int, str] = {}
    _first_readers(structure.program, readers)
    of_leaf = {path: readers.get(id(axes), "") for path, axes in structure.axes.items()}
    return {
        name: tuple(
            (of_leaf[path], len(structure.axes[path]), axis)
            for path, axis in group.members
            if path in structure.axes  # the others are inputs
        )
        for name, group in structure.groups.items()
    }


def _first_readers(program: Program, found: dict[int, str]) -> None:
    """The name of the first primitive that reads each value, by the `id` of its axes."""
    for step in program.steps:
        for inner in step.inner:  # calls pass on the axes themselves; loops make their own
            _first_readers(inner, found)
        for axes in step.inputs:
            found.setdefault(id(axes), step.eqn.primitive.name)
