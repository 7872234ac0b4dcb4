"""Which neurons a stage of continuous relaxation cuts: those whose gates are under a threshold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.coupling.structure import Structure
from jaxprune.structured.cost import counter
from jaxprune.structured.kept import Kept, Removal

Gates = Mapping[str, np.ndarray]  # float (size,) by group


def held(structure: Structure) -> list[str]:
    """The groups that no path leads around: without their neurons the network reads no input."""
    found = []
    for name, group in structure.groups.items():
        try:
            jp.structured.remove_emptied(structure, {name: np.zeros(group.size, bool)})
        except ValueError:
            found.append(name)
    return found


def cut(
    structure: Structure,
    gates: Gates,
    kept: Kept,
    threshold: float,
    budget: float = 0.0,
    exact: bool = False,
    never_empty: Collection[str] | None = None,
) -> Removal:
    """The neurons that were kept and whose gate is above the threshold; branches without any go.

    Args:
      gates: their values; of a group that may not be empty the strongest is kept, whatever it is.
      kept: those that are left.
      threshold: in [0, 1).
      budget: the share of the dense FLOPs below which nothing is cut; 0 for no such bound.
      exact: cut down to the budget, past the threshold if need be.
      never_empty: groups; None for all.
    """
    before = kept if isinstance(kept, Removal) else Removal(kept, ())
    safe = set(structure.groups if never_empty is None else never_empty)
    scores = {
        name: np.where(before.kept.get(name, True), np.asarray(gates[name], np.float64), -np.inf)
        for name in structure.groups
    }
    for name in safe:
        scores[name][np.argmax(scores[name])] = np.inf
    ranked = np.concatenate(list(scores.values()))
    order = np.argsort(-ranked, kind="stable")
    n = above = int((ranked > threshold).sum())
    if budget:
        share = _share(structure)
        least = int((ranked == np.inf).sum())
        most = int((ranked > -np.inf).sum())
        within = _last(lambda n: share(_first(scores, order, n)) <= budget, least, most)
        n = within if exact else max(above, within)
    return _removed(structure, _first(scores, order, n), scores)


def removals(structure: Structure, kept: Mapping[str, Any]) -> list[Removal]:
    """What is left of each lane of {group: bool (lanes, size)}, without empty branches."""
    found = []
    for i in range(len(next(iter(kept.values())))):
        own = {name: np.asarray(x[i]) for name, x in kept.items()}
        empty = not all(neurons.any() for neurons in own.values())
        found.append(jp.structured.remove_emptied(structure, own) if empty else Removal(own, ()))
    return found


def masks_of(structure: Structure, left: Sequence[Removal]) -> Any:
    """Masks of all variables, a stack: what is left of each lane."""
    full = lambda x, m: jnp.ones(x.shape, bool) if m is None else m
    masks = lambda own: jax.tree.map(full, structure.shapes, jp.structured.masks(structure, own))
    return jax.tree.map(lambda *x: jnp.stack(x), *map(masks, left))


def _first(scores: Gates, order: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """The first `n` in this order of all neurons, by group."""
    whole = np.zeros(len(order), bool)
    whole[order[:n]] = True
    ends = np.cumsum([len(own) for own in scores.values()])[:-1]
    return dict(zip(scores, np.split(whole, ends), strict=True))


def _removed(structure: Structure, kept: dict[str, np.ndarray], scores: Gates) -> Removal:
    """Without the branches of empty groups; the best neuron of each stays if nothing else would."""
    if all(own.any() for own in kept.values()):
        return Removal(kept, ())
    try:
        return jp.structured.remove_emptied(structure, kept)
    except ValueError:  # each branch may go, but not all of them
        left = {name: own > -np.inf for name, own in scores.items()}
        best = {n: left[n] & (np.arange(len(own)) == np.argmax(own)) for n, own in scores.items()}
        found = {name: own if own.any() else best[name] for name, own in kept.items()}
        gone = any(not own.any() for own in found.values())  # in an earlier stage
        return jp.structured.remove_emptied(structure, found) if gone else Removal(found, ())


def _share(structure: Structure) -> Any:
    """The share of the dense FLOPs that kept neurons cost."""
    count = counter(structure)
    dense = count({}).flops
    return lambda kept: count(kept).flops / dense


def _last(holds: Any, low: int, high: int) -> int:
    """The last of low, ..., high for which it holds, if up to there it does; else `low`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
