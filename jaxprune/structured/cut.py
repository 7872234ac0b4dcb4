"""Which neurons a gate cuts: those under a threshold, as far as a budget of FLOPs allows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from jaxprune.coupling.structure import Structure
from jaxprune.structured.cost import counter
from jaxprune.structured.gates import GroupGates
from jaxprune.structured.kept import KeptLike, Removal
from jaxprune.structured.removal import allowed, remove_emptied


def required_groups(structure: Structure) -> list[str]:
    """The groups that no path leads around: without their neurons an output reads no input.

    Args:
      structure: of `analyze`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((2, 2)), 'b': jnp.ones((2, 3)), 'c': jnp.ones((3, 2))}
    >>> fn = lambda p, x: (h := x @ p['a']) + jnp.tanh(h @ p['b']) @ p['c']
    >>> structure = jp.analyze(fn, params, jnp.ones((1, 2)))
    >>> list(structure.groups), required_groups(structure)
    (['b'], [])
    """
    required = []
    for name, group in structure.groups.items():
        try:
            remove_emptied(structure, {name: np.zeros(group.size, bool)})
        except ValueError:
            required.append(name)
    return required


def cut(
    structure: Structure,
    gates: GroupGates,
    threshold: float,
    kept: KeptLike | None = None,
    *,
    flops: float | None = None,
    exact: bool = False,
    never_empty: Collection[str] | None = None,
) -> Removal:
    """The kept neurons whose gate is above the threshold; branches without neurons are removed.

        cut(structure, gates, 0.1, flops=0.5)

    Args:
      structure: of `analyze`.
      gates: float (size,) of each group, not traced.
      threshold: in [0, 1).
      kept: the neurons that are left: bool (size,) by group, or a `Removal`; None for all.
      flops: the share of the dense FLOPs below which nothing is cut; None for no such bound.
      exact: cut down to `flops`, past the threshold if need be.
      never_empty: groups that keep their strongest neuron, whatever its gate; None for all. A
        group that is not `required_groups` may be left out.

    Raises:
      ValueError, TypeError: if `kept` does not fit the structure.

    Reference: Larson et al., 2023, A Generalization of Continuous Relaxation in Structured Pruning
    (the thresholds). The bound is ours.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((1, 3)), 'b': jnp.ones((3, 2))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 1)))
    >>> cut(structure, {'a': jnp.array([0.9, 0.2, 0.05])}, threshold=0.1).kept['a']
    array([ True,  True, False])
    """
    neurons = allowed(structure, {} if kept is None else kept).neurons
    scores = {
        name: np.where(neurons.get(name, True), np.asarray(gates[name], np.float64), -np.inf)
        for name in structure.groups
    }
    for name in structure.groups if never_empty is None else never_empty:
        scores[name][np.argmax(scores[name])] = np.inf
    ranked = np.concatenate(list(scores.values()))
    order = np.argsort(-ranked, kind="stable")
    n = above = int((ranked > threshold).sum())
    if flops is not None:
        count = counter(structure)
        dense = count({}).flops
        fits = lambda n: count(_first(scores, order, n)).flops / dense <= flops
        least, most = int((ranked == np.inf).sum()), int((ranked > -np.inf).sum())
        within = _last(fits, least, most)
        n = within if exact else max(above, within)
    return _without_emptied(structure, _first(scores, order, n), scores)


def _first(scores: Mapping[str, Any], order: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """The first `n` in this order of all neurons, by group."""
    mask = np.zeros(len(order), bool)
    mask[order[:n]] = True
    ends = np.cumsum([len(s) for s in scores.values()])[:-1]
    return dict(zip(scores, np.split(mask, ends), strict=True))


def _without_emptied(
    structure: Structure, kept: dict[str, np.ndarray], scores: Mapping[str, Any]
) -> Removal:
    """`remove_emptied`; where nothing would be left, each group keeps its best neuron."""
    try:
        return remove_emptied(structure, kept)
    except ValueError:  # each branch may go, but not all of them
        best = {
            name: (s > -np.inf) & (np.arange(len(s)) == np.argmax(s)) for name, s in scores.items()
        }
        kept = {name: mask if mask.any() else best[name] for name, mask in kept.items()}
        return remove_emptied(structure, kept)


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The last of low, ..., high for which it holds, if up to there it does; else `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
