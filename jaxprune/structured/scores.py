"""Scores by group: what each neuron is worth, from its slices of all the leaves that it is on.

A score of groups is a score like others, `(params, *, grads, step, **_) -> scores`, but of a tree
{group: (size,)} in place of the params' own: `lamp`, `select` and allocations take it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params, Score, Scores, widened
from jaxprune.coupling.structure import Member, Structure
from jaxprune.keys import key_first
from jaxprune.prunable.layers import folded, split_like
from jaxprune.prunable.rules import kernels
from jaxprune.scores import magnitude
from jaxprune.scores import random as random_like
from jaxprune.structured.check import check_params
from jaxprune.structured.makers import makers
from jaxprune.structured.slices import slices
from jaxprune.trees import map_scored, named_leaves, quoted

Slices = dict[Member, jax.Array]


def mean_of_sums(own: Slices) -> jax.Array:
    """(size,): the sum over a neuron's entries in each member, averaged over members."""
    return jnp.stack([widened(x).sum(1) for x in own.values()]).mean(0)


def abs_of_sum(own: Slices) -> jax.Array:
    """(size,): |the sum over all of a neuron's entries|."""
    return jnp.abs(jnp.stack([widened(x).sum(1) for x in own.values()]).sum(0))


def distances(x: jax.Array) -> jax.Array:
    """(size,): the sum of the Euclidean distances from each row of `x` to all others.

    Rows that are all zero are pruned neurons, and none of the others. Nor are those that hold inf
    or nan, which are inf away.
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

    The last counts scales of norms as Torch-Pruning's `GroupMagnitudeImportance` does. For the
    geometric median, which is of one layer's filters, see `geometric_median`.

    The params may be a part of what was analyzed, such as those without `batch_stats`.

    Args:
      structure: of `analyze`.
      score: what each weight is worth; see `jaxprune.scores`.
      prunable: `params -> params` with None in place of leaves that say nothing of a neuron's
        worth; by default only kernels do, inputs and outputs alike.
      of: `{member: (size, entries)} -> (size,)`: what a neuron's slices are worth together.

    Raises:
      ValueError: (when used) if of a group no leaf is prunable, or the params are not those that
        were analyzed.

    Reference: Fang et al., 2023, DepGraph: Towards Any Structural Pruning (the mean of sums).
    """

    def scores(params: Params, *, grads: Params = None, **context: Any) -> Scores:
        prefix = check_params("per_group", structure, params)
        chosen = prunable(params)
        slopes = None if grads is None else split_like(grads, chosen)
        of_weights = named_leaves(folded(score(chosen, grads=slopes, **context)))
        of_leaves = {prefix + path: s for path, s in of_weights}
        found = {}
        for name, group in structure.groups.items():
            own = slices(structure, name, of_leaves)
            if not own:
                have = [(member.path, None) for member in group.members]
                raise ValueError(
                    f"per_group: none of {quoted(have)}, the leaves of group '{name}', is "
                    "prunable, and so nothing says what its neurons are worth. Choose with "
                    "prunable=matching(...), or exclude the group with analyze(..., freeze=...)."
                )
            found[name] = of(own)
        return found

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


def geometric_median(structure: Structure, prunable: Callable[[Params], Params] = kernels) -> Score:
    """How far each neuron's filter is from those of its neighbors: `params -> {group: (size,)}`.

        I_k = sum_j |F_k - F_j|_2        F_k: the weights of the layer that makes neuron k

    Small is near the geometric median, which the other filters can stand in for. Only layers that
    make the neurons count, not those that read them. Where several layers make them (all that add
    to one residual stream) it is the mean over these layers. A filter that is all zero is pruned,
    and no neighbor.

    Args:
      structure: of `analyze`.
      prunable: `params -> params` with None in place of leaves that have no filters; by default
        kernels have.

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
        found = {}
        for name in structure.groups:
            own = slices(structure, name, {path: leaves.get(path) for path, _ in made[name]})
            filters = [own[member] for member in made[name] if member in own]
            if not filters:
                have = [(str(member), None) for member in made[name]]
                raise ValueError(
                    f"geometric_median: group '{name}' is made by {quoted(have)}, and none of "
                    "these is prunable: it has no filters. Choose with prunable=matching(...), or "
                    "exclude the group with analyze(..., freeze=...)."
                )
            found[name] = jnp.stack([distances(x) for x in filters]).mean(0)
        return found

    return scores


@key_first
def random(key: jax.Array, structure: Structure) -> Score:
    """Uniform random scores by group, from `key` folded with the step: the baseline."""
    sizes = {name: jnp.zeros(group.size) for name, group in structure.groups.items()}
    draw = random_like(key)
    return lambda params, *, step=0, **_: draw(sizes, step=step)


def normalized(score: Score, by: Callable[[jax.Array], jax.Array] = jnp.mean) -> Score:
    """A score of a score: s / by(s) in each group, so that one threshold serves all of them.

    What is inf or nan scores inf, and is 0 in `by`: one weight that diverged does not decide over
    its group.

    Args:
      score: of groups.
      by: `(size,) -> scalar`: `jnp.mean`, `jnp.max`, `jnp.linalg.norm`, ... For the normalization
        of LAMP take `lamp(score)`.
    """

    def group(s: jax.Array) -> jax.Array:
        finite = jnp.where(jnp.isfinite(s), s, 0.0)
        scaled = finite / jnp.maximum(by(finite), jnp.finfo(s.dtype).tiny)
        return jnp.where(jnp.isnan(s) | jnp.isposinf(s), jnp.inf, scaled)

    return lambda params, **context: map_scored(group, score(params, **context))
