"""Alignment: the order of one network's neurons in which its weights are nearest to another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from scipy.optimize import linear_sum_assignment

from jaxprune.base import Params, is_int, is_known
from jaxprune.coupling import Axis, Coupling, Group, check_coupling, front, take, take_leaf
from jaxprune.trees import check_like, named_leaves

Permutations = dict[str, Any]


def permute(params: Params, coupling: Coupling, permutations: Mapping[str, Any]) -> Params:
    """`params` with the neurons of each group reordered: place i gets neuron `permutations[i]`.

    The network computes the same function. Masks are permuted in the same way (None stays None):
    `overlap(masks_a, permute(masks_b, ...))` compares masks after alignment. For stacks use `vmap`.

    Args:
      params: a tree that the coupling fits: params, masks, gradients.
      coupling: which axes are indexed by the same neurons: `analyze(fn, params, x).coupling()`, or
        {group: [(path, axis), ...]} by hand.
      permutations: int (neurons,) by group; other groups stay as they are.

    Raises:
      ValueError: if the coupling does not fit, or an entry is no permutation of its group.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'in': jnp.array([[1, 2, 3]]), 'out': jnp.array([[1], [2], [3]])}
    >>> coupling = {'h': [('in', 1), ('out', 0)]}
    >>> moved = jp.analysis.permute(params, coupling, {'h': jnp.array([2, 0, 1])})
    >>> moved['in'].tolist(), moved['out'].tolist()
    ([[3, 1, 2]], [[3], [1], [2]])
    """
    groups = check_coupling(coupling, params)
    for group, order in permutations.items():
        if group not in coupling:
            raise ValueError(
                f"permute: there is no group '{group}' in the coupling; it has "
                f"{', '.join(map(repr, coupling))}."
            )
        if group not in groups:
            continue
        size = groups[group].size
        fits = np.shape(order) == (size,)
        if not fits or (is_known(order) and (np.sort(order) != np.arange(size)).any()):
            raise ValueError(
                f"permute: group '{group}' has {size} neurons; its permutation holds each of 0 to "
                f"{size - 1} once, shape ({size},); got shape {np.shape(order)}"
                + (" with repeated or foreign numbers." if fits else ".")
            )
    return take(params, coupling, permutations)


def match_weights(
    key: jax.Array, a: Params, b: Params, coupling: Coupling, *, starts: int = 1, sweeps: int = 100
) -> Permutations:
    """Permutations that bring `b` nearest to `a`: `permute(b, coupling, permutations)`.

        maximize sum over leaves of <w_a, pi(w_b)>,  one group after the other:
        P_g = argmax_P <P, C>,   C = sum over axes of g of w_a pi_others(w_b)^T

    The problem of one group is a linear assignment, which is solved exactly. All groups together
    are hard: this is coordinate ascent to a local optimum. Match masked weights, without running
    statistics, which have another scale.

    Outside `jit`, scipy solves the assignments in float64, and each sweep takes the groups in a new
    random order. Inside, optax solves them in float32, in the order of the coupling.

    Args:
      key: draws orders and starts.
      a, b: trees alike.
      coupling: as for `permute`; a group may index a leaf by one axis only.
      starts: how many climbs: the first from the given order, the others from random orders. The
        best one wins.
      sweeps: how many times to go through all groups, at most.

    Returns:
      int32 (neurons,) by group.

    Raises:
      ValueError: if the trees differ, the coupling does not fit, a number is below 1, or a weight
        is known to be nan or inf.

    Reference: Ainsworth, Hayase and Srinivasa, 2023, Git Re-Basin: Merging Models modulo
    Permutation Symmetries.
    """
    for argument, value in (("starts", starts), ("sweeps", sweeps)):
        if not is_int(value, 1):
            raise ValueError(f"match_weights: {argument} must be at least 1; got {value!r}.")
    check_like("match_weights: b", b, a)
    groups = check_coupling(coupling, a)
    pairs = _coupled_leaves(a, b, groups)
    if not is_known((key, a, b)):
        with jax.default_matmul_precision("highest"):  # accelerators would round to fewer bits
            return _match_in_jit(key, pairs, groups, starts, sweeps)
    arrays = {path: [np.asarray(x, np.float64) for x in pair] for path, pair in pairs.items()}
    climb = _Climb(arrays, groups)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    best, best_similarity = None, -np.inf
    for start in range(starts):
        orders = climb.identity(np)
        if start:
            orders = {group: rng.permutation(order) for group, order in orders.items()}
        for _ in range(sweeps):
            turns = [list(groups)[i] for i in rng.permutation(len(groups))]
            orders, improved = climb.sweep(orders, turns, _assign_on_host)
            if not improved:
                break
        if (similarity := climb.similarity(orders)) > best_similarity:
            best, best_similarity = orders, similarity
    assert best is not None
    return {group: jnp.asarray(order, jnp.int32) for group, order in best.items()}


def _match_in_jit(
    key: jax.Array, pairs: Any, groups: Mapping[str, Group], starts: int, sweeps: int
) -> Permutations:
    arrays = {path: [x.astype(jnp.float32) for x in pair] for path, pair in pairs.items()}
    climb = _Climb(arrays, groups)

    def up(orders: Permutations) -> tuple[Permutations, jax.Array]:
        def go_on(carry: Any) -> jax.Array:
            i, _, improved = carry
            return (i < sweeps) & improved

        def sweep(carry: Any) -> Any:
            i, orders, _ = carry
            return (i + 1, *climb.sweep(orders, list(groups), _assign_in_jit))

        orders = lax.while_loop(go_on, sweep, (0, orders, jnp.array(True)))[1]
        return orders, climb.similarity(orders)

    best, best_similarity = up(climb.identity(jnp))
    for start in range(1, starts):
        keys = jax.random.split(jax.random.fold_in(key, start), max(len(groups), 1))
        drawn = {
            group: jax.random.permutation(k, order)
            for k, (group, order) in zip(keys, climb.identity(jnp).items(), strict=False)
        }
        orders, similarity = up(drawn)
        best = optax.tree.where(similarity > best_similarity, orders, best)
        best_similarity = jnp.maximum(similarity, best_similarity)
    return best


class _Climb:
    """Coordinate ascent over the orders of groups, on numpy or on jax arrays."""

    def __init__(self, arrays: Mapping[str, Any], groups: Mapping[str, Group]):
        self.arrays, self.groups = arrays, groups
        self.owners: dict[str, list[tuple[str, Axis]]] = {path: [] for path in arrays}
        for group, (_, axes) in groups.items():
            for axis in axes:
                self.owners[axis.path].append((group, axis))

    def identity(self, xp: Any) -> Permutations:
        return {group: xp.arange(size, dtype=np.int32) for group, (size, _) in self.groups.items()}

    def permuted(self, path: str, orders: Permutations, but: str | None = None) -> Any:
        """The leaf of b under the orders of all groups, or of all but one."""
        picks = [(axis, orders[group]) for group, axis in self.owners[path] if group != but]
        return take_leaf(self.arrays[path][1], picks)

    def similarity(self, orders: Permutations) -> Any:
        return sum((x * self.permuted(path, orders)).sum() for path, (x, _) in self.arrays.items())

    def sweep(
        self, orders: Permutations, turns: list[str], assign: Callable[[Any], Any]
    ) -> tuple[Permutations, Any]:
        """The orders after one turn of each group, and whether one of them improved."""
        orders, improved = dict(orders), False
        for group in turns:
            size, axes = self.groups[group]
            c = sum(
                front(self.arrays[axis.path][0], axis)
                @ front(self.permuted(axis.path, orders, but=group), axis).T
                for axis in axes
            )
            order, rows = assign(c), np.arange(size)
            new, old = c[rows, order].sum(), c[rows, orders[group]].sum()
            better = new - old > 10 * np.finfo(c.dtype).eps * abs(c).max(-1).sum()
            xp = jnp if isinstance(c, jax.Array) else np
            orders[group] = xp.where(better, order, orders[group]).astype(np.int32)
            improved = improved | better
        return orders, improved


def _assign_on_host(c: np.ndarray) -> np.ndarray:
    """For each row of c its column: the permutation with the largest sum."""
    return linear_sum_assignment(c, maximize=True)[1]


def _assign_in_jit(c: jax.Array) -> jax.Array:
    rows, columns = optax.assignment.hungarian_algorithm(-c)
    return jnp.zeros(len(c), jnp.int32).at[rows].set(columns.astype(jnp.int32))


def _coupled_leaves(a: Params, b: Params, groups: Mapping[str, Group]) -> dict[str, tuple]:
    """{path: (leaf of a, leaf of b)} of the leaves that the groups index."""
    paths = [axis.path for _, axes in groups.values() for axis in axes]
    for group, (_, axes) in groups.items():
        indexed = [axis.path for axis in axes]
        twice = [path for path in indexed if indexed.count(path) > 1]
        if twice:
            raise ValueError(
                f"match_weights: group '{group}' indexes two axes of '{twice[0]}'. Its assignment "
                "is then not linear, and weight matching can't solve it; permute can apply it."
            )
    leaves = {"a": dict(named_leaves(a)), "b": dict(named_leaves(b))}
    for tree, by_path in leaves.items():
        for path in paths:
            w = by_path[path]
            if is_known(w) and not np.isfinite(np.asarray(w, np.float64)).all():
                raise ValueError(
                    f"match_weights: '{path}' of {tree} has entries that are nan or inf. That "
                    "network has diverged: leave it out."
                )
    indexed = [path for path in leaves["a"] if path in paths]
    return {path: tuple(jnp.asarray(leaves[tree][path]) for tree in "ab") for path in indexed}
