"""Scores by group: what each neuron is worth, from its slices of all the leaves that it is on.

A score of groups is a score like others, `(params, *, grads, step, **_) -> scores`, but of a tree
{group: (size,)} in place of the params' own: `lamp`, `select` and allocations take it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params, Score, Scores, call_first, widened
from jaxprune.coupling.structure import Member, Structure
from jaxprune.coupling.uses import Uses
from jaxprune.keys import key_first
from jaxprune.prunable.layers import folded, split_like
from jaxprune.prunable.rules import kernels
from jaxprune.scores import magnitude
from jaxprune.scores import random as random_like
from jaxprune.structured.check import check_params, slices
from jaxprune.trees import map_scored, named_leaves, quoted

Slices = dict[Member, jax.Array]  # (size, entries) by member, a neuron a row


def mean_of_sums(slices: Slices) -> jax.Array:
    """(size,): the sum over a neuron's entries in each member, averaged over members."""
    return jnp.stack([widened(x).sum(1) for x in slices.values()]).mean(0)


def abs_of_sum(slices: Slices) -> jax.Array:
    """(size,): |the sum over all of a neuron's entries|."""
    return jnp.abs(jnp.stack([widened(x).sum(1) for x in slices.values()]).sum(0))


def distances(x: jax.Array) -> jax.Array:
    """(size,): the sum of the Euclidean distances from each row of `x` to all others.

    A row that is all zero is a pruned neuron: it does not count among the others. Nor does a row
    that holds inf or nan: it is inf away.
    """
    x = x.astype(jnp.float32)
    finite = jnp.isfinite(x).all(1)
    x = jnp.where(finite[:, None], x, 0.0)
    others = (x != 0).any(1)
    x = x - x.mean(0, keepdims=True)  # nearer to zero, where squares are exact
    norms = (x * x).sum(1)
    squares = norms[:, None] + norms[None] - 2 * jnp.dot(x, x.T, precision="highest")
    itself = jnp.eye(len(x), dtype=bool)
    apart = jnp.where(itself | ~others[None], 0.0, jnp.maximum(squares, 0.0))
    return jnp.where(finite, jnp.sqrt(apart).sum(1), jnp.inf)


@call_first("jp.structured.per_group(structure)")
def per_group(
    structure: Structure,
    score: Score = magnitude,
    prunable: Callable[[Params], Params] = kernels,
    of: Callable[[Slices], jax.Array] = mean_of_sums,
) -> Score:
    """What each neuron is worth, by group: `params -> {group: (size,)}`, float32.

        I_k = of({score(w)[k-th slice] : members of the group})

    The usual criteria are choices of these functions:

        L1 norm            per_group(structure)
        L2 norm, squared   per_group(structure, square)
        Taylor             per_group(structure, saliency)
        Taylor, signed     per_group(structure, taylor, of=abs_of_sum)
        Fisher             per_group(structure, fisher)
        scale of the norm  per_group(structure, prunable=matching('*/scale'))
        norms with scales  per_group(structure, square, matching('*/kernel', '*/scale'))

    The last counts scales of norms as Torch-Pruning's `GroupMagnitudeImportance` does. The
    geometric median is over one layer's filters: see `geometric_median`.

    The params may be a part of the params that were analyzed, without `batch_stats` for example.

    Args:
      structure: of `analyze`.
      score: what each weight is worth; see `jaxprune.scores`.
      prunable: `params -> params` with None in place of leaves that do not count; by default only
        kernels count, those that make neurons and those that read them.
      of: `{member: (size, entries)} -> (size,)`: what a neuron's slices are worth together.

    Raises:
      ValueError: (when used) if a group has no prunable leaf, or the params are not those that
        were analyzed.

    Reference: Fang et al., 2023, DepGraph: Towards Any Structural Pruning (the mean of sums).
    """

    def scores(params: Params, *, grads: Params = None, **context: Any) -> Scores:
        prefix = check_params("per_group", structure, params)
        chosen = prunable(params)
        slopes = None if grads is None else split_like(grads, chosen)
        of_weights = named_leaves(folded(score(chosen, grads=slopes, **context)))
        leaves = {prefix + path: s for path, s in of_weights}
        worth = {}
        for name, group in structure.groups.items():
            scored = slices(structure, name, leaves)
            if not scored:
                have = [(member.path, None) for member in group.members]
                raise ValueError(
                    f"per_group: none of {quoted(have)}, the leaves of group '{name}', is "
                    "prunable, and so nothing says what its neurons are worth. Choose with "
                    "prunable=matching(...), or exclude the group with analyze(..., freeze=...)."
                )
            worth[name] = of(scored)
        return worth

    return scores


def square(params: Params, **_: Any) -> Scores:
    """|w|^2, like `params`: for the squared L2 norm of slices."""
    return map_scored(lambda w: jnp.abs(widened(w)) ** 2, params)


def taylor(params: Params, *, grads: Params = None, **_: Any) -> Scores:
    """W dL/dw, like `params`, signed: for `per_group(..., of=abs_of_sum)`; its real part.

    Raises:
      ValueError: without `grads`.

    Reference: Molchanov et al., 2019, Importance Estimation for Neural Network Pruning.
    """
    if grads is None:
        raise ValueError("structured.taylor needs gradients: call its score with grads=grads.")
    return map_scored(lambda w, g: (widened(w) * widened(g)).real, params, grads)


@call_first("jp.structured.geometric_median(structure)")
def geometric_median(structure: Structure, prunable: Callable[[Params], Params] = kernels) -> Score:
    """How far each neuron's filter is from those of its neighbors: `params -> {group: (size,)}`.

        I_k = sum_j |F_k - F_j|_2        F_k: the weights of the layer that makes neuron k

    A low score is near the geometric median: the other filters can stand in for it. Only layers
    that make the neurons count, not layers that read them. Where several layers make them (all that
    add to one residual stream) the score is the mean over these layers. A filter that is all zero
    is pruned, and no neighbor.

    Args:
      structure: of `analyze`.
      prunable: `params -> params` with None in place of leaves that have no filters; by default
        kernels have filters.

    Raises:
      ValueError: (when used) if a group is made by no prunable leaf, or the params are not those
        that were analyzed.

    Reference: He et al., 2019, Filter Pruning via Geometric Median for Deep Convolutional Neural
    Networks Acceleration. The mean over several layers is ours.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.array([[0., 3., 0.], [0., 0., 4.]]), 'b': jnp.ones((3, 1))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 2)))
    >>> jp.structured.geometric_median(structure)(params)['a']  # of (0, 0), (3, 0), (0, 4)
    Array([7., 5., 5.], dtype=float32)
    """
    made = makers(structure)

    def scores(params: Params, **_: Any) -> Scores:
        prefix = check_params("geometric_median", structure, params)
        leaves = {prefix + path: w for path, w in named_leaves(prunable(params))}
        worth = {}
        for name in structure.groups:
            rows = slices(structure, name, {path: leaves.get(path) for path, _ in made[name]})
            filters = [rows[member] for member in made[name] if member in rows]
            if not filters:
                have = [(str(member), None) for member in made[name]]
                raise ValueError(
                    f"geometric_median: group '{name}' is made by {quoted(have)}, and none of "
                    "these is prunable: it has no filters. Choose with prunable=matching(...), or "
                    "exclude the group with analyze(..., freeze=...)."
                )
            worth[name] = jnp.stack([distances(x) for x in filters]).mean(0)
        return worth

    return scores


def makers(structure: Structure) -> dict[str, tuple[Member, ...]]:
    """By group the members that make its neurons, in the order of the data.

    An axis of a leaf makes neurons if a product with the leaf, or a look-up in it, has the axis in
    its result. An axis that a product sums over reads neurons; norms and biases do neither.
    """
    uses, axes = Uses(structure.program, list(structure.axes)), structure.axes
    return {
        name: tuple(
            Member(path, i)
            for path, i in group.members
            if path in axes and uses.makes(path, axes[path][i], structure.atoms[name])
        )
        for name, group in structure.groups.items()
    }


@key_first
def random(key: jax.Array, structure: Structure) -> Score:
    """Uniform random scores by group, from `key` folded with the step: the baseline."""
    sizes = {name: jnp.zeros(group.size) for name, group in structure.groups.items()}
    draw = random_like(key)
    return lambda params, *, step=0, **_: draw(sizes, step=step)


@call_first("jp.structured.normalized(jp.structured.per_group(structure))")
def normalized(score: Score, by: Callable[[jax.Array], jax.Array] = jnp.mean) -> Score:
    """A score of a score: s / by(s) in each group, so that one threshold serves all of them.

    A score that is inf or nan becomes inf, and counts as 0 in `by`: one weight that diverged does
    not decide over its group.

    Args:
      score: of groups.
      by: `(size,) -> scalar`: `jnp.mean`, `jnp.max`, `jnp.linalg.norm`, ... `lamp(score)` is
        LAMP's normalization.
    """

    def group(s: jax.Array) -> jax.Array:
        finite = jnp.where(jnp.isfinite(s), s, 0.0)
        scaled = finite / jnp.maximum(by(finite), jnp.finfo(s.dtype).tiny)
        return jnp.where(jnp.isnan(s) | jnp.isposinf(s), jnp.inf, scaled)

    return lambda params, **context: map_scored(group, score(params, **context))
