"""Allocations: how much of each leaf is pruned, for a sparsity of all leaves together.

An allocation is a function `(scores, sparsity) -> sparsities`. Most read shapes only;
`global_threshold` reads values. A float is a fraction, an integer a number of weights
(`jaxprune.base.Sparsity`): `global_threshold` prunes exactly that number, the others round in each
leaf. For a Python number the layers get Python numbers, even under `jit`. For a traced sparsity
(a schedule) they get traced ones; `er` and `erk` then give integers, the same counts.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import (
    Allocation,
    Params,
    Scores,
    Sparsities,
    Sparsity,
    is_count,
)
from jaxprune.exact.affine import rounded
from jaxprune.prunable.layout import matrix_shape
from jaxprune.prunable.rules import layouts_of
from jaxprune.selection.counting import left, n_true, numerator
from jaxprune.selection.largest import largest
from jaxprune.trees import map_scored

_NEAR = 1e-9  # a density so near to a limit is at it


def uniform(scores: Scores, sparsity: Sparsity) -> Sparsities:
    """The same sparsity for every leaf; of a number of weights each leaf's share, rounded."""
    if not is_count(sparsity):
        return map_scored(lambda _: sparsity, scores)
    total = sum(x.size for x in jax.tree.leaves(scores))
    if is_number(sparsity):
        share = int(sparsity) / max(total, 1)
        return map_scored(lambda _: share, scores)
    leaves, treedef = jax.tree.flatten(scores)
    n, unit = numerator(jnp.asarray(sparsity), total)
    sizes = [x.size for x in leaves]
    counts = rounded(n, [[(Fraction(size, unit), 0) for size in sizes]], sizes)
    return jax.tree.unflatten(treedef, list(counts))


def er(scores: Scores, sparsity: Sparsity) -> Sparsities:
    """Erdos-Renyi: the density of a leaf is proportional to (fan_in + fan_out) / (fan_in fan_out).

    Leaves that would exceed density 1 are dense, tied ones together. The others make up for them:
    the sum of density * size is (1 - sparsity) * total. Heads count with their features: a query
    kernel (inputs, heads, features) has a fan_out of heads * features.

    Raises:
      ValueError: if the axes of inputs and outputs can't be known (`jaxprune.prunable.layout`).

    Reference: Mocanu et al., 2018, Scalable Training of Artificial Neural Networks with Adaptive
    Sparse Connectivity inspired by Network Science.
    """
    return _proportional(
        "er", scores, sparsity, lambda shape: max(sum(shape[-2:]), 1) / math.prod(shape[-2:])
    )


def erk(scores: Scores, sparsity: Sparsity) -> Sparsities:
    """Erdos-Renyi-Kernel: the density of a leaf is proportional to sum(shape) / prod(shape).

    As `er`, with the spatial axes of a convolution counted too: shape is (spatial..., inputs,
    outputs).

    Reference: Evci et al., 2020, Rigging the Lottery: Making All Tickets Winners.
    """
    raw = lambda shape: max(sum(shape), 1) / math.prod(shape)
    return _proportional("erk", scores, sparsity, raw)


def global_threshold(scores: Scores, sparsity: Sparsity) -> Sparsities:
    """How many weights of each leaf are below one threshold for all leaves: integers.

    The counts sum to `round(sparsity * total)` exactly. Among equal scores the earlier leaf is
    kept first. A leaf can lose all its weights: see `report`, or use `lamp` scores.

    Under `jit` the threshold is for the whole arrays, however they are laid out. Inside a
    `shard_map` each shard has its own threshold: right for seeds, one a device; for a model that is
    cut into shards, select outside.
    """
    leaves, treedef = jax.tree.flatten(scores)
    total = sum(x.size for x in leaves)
    masks = largest(leaves, left(sparsity, total), together=True)
    return jax.tree.unflatten(treedef, [n_true(~mask)[0] for mask in masks])


def check_end(allocation: Allocation, chosen: Params, last: float | None) -> None:
    """ValueError if an allocation can't mean the last value of a schedule.

    Args:
      chosen: the prunable leaves; shapes are enough.
      last: the last value of the schedule; None if it is not known.
    """
    if last is None or allocation is global_threshold:  # it takes any sparsity
        return
    with contextlib.suppress(jax.errors.JAXTypeError):  # an allocation that reads numpy values
        jax.eval_shape(lambda scores: (allocation(scores, last), None)[1], chosen)


def _proportional(
    what: str, scores: Scores, sparsity: Sparsity, raw: Callable[[tuple[int, ...]], float]
) -> Sparsities:
    """Density of each leaf: min(1, eps * raw(shape)), with eps such that the budget is met.

    Closed form. With the j leaves of largest `raw` dense, the budget d N gives
    eps_j = (d N - N_dense) / (sum of raw N over the rest). It is right for the first j for which
    no other leaf exceeds density 1, that is for d <= limit_j below.
    """
    leaves, treedef = jax.tree.flatten(scores)
    if not any(x.size for x in leaves):
        return uniform(scores, sparsity)
    layouts = layouts_of(what, scores, either_way=True).values()
    fans = [matrix_shape(layout, x.shape) for layout, x in zip(layouts, leaves, strict=True)]
    sizes = np.array([x.size for x in leaves], np.float64)
    raws = np.array([raw(shape) if math.prod(shape) else 0.0 for shape in fans], np.float64)
    distinct = np.unique(raws)[::-1]  # tied maxima go dense together
    is_dense = raws >= np.concatenate([[np.inf], distinct[:-1]])[:, None]  # (j, leaf)
    n_dense = is_dense @ sizes
    rest = (~is_dense * raws) @ sizes
    limits = (rest / np.where(distinct > 0, distinct, 1.0) + n_dense) / sizes.sum()

    total = sum(x.size for x in leaves)
    if is_number(sparsity):
        density = 1 - (int(sparsity) / total if is_count(sparsity) else sparsity)
        j = min(np.sum(density > limits + _NEAR), len(limits) - 1)
        eps = (density * sizes.sum() - n_dense[j]) / (rest[j] if rest[j] > 0 else 1.0)
        densities = np.where(is_dense[j], 1.0, np.minimum(eps * raws, 1.0))
        return jax.tree.unflatten(treedef, np.maximum(1 - densities, 0.0).tolist())

    # the same for a traced sparsity n / unit: how much each leaf loses is a line in n
    n, unit = numerator(jnp.asarray(sparsity), total)

    def line(size: int, raw: float, dense: bool, full: float, others: float) -> tuple[Any, Any]:
        """Slope and offset of `size (1 - eps raw)`."""
        share = Fraction(0) if dense or not raw else size * Fraction(raw) / Fraction(others)
        return share * total / unit, 0 if dense else size - share * (total - int(full))

    counts_of_leaves = [x.size for x in leaves]
    lines = [
        [line(*leaf, full, others) for leaf in zip(counts_of_leaves, raws, dense, strict=True)]
        for dense, full, others in zip(is_dense, n_dense, rest, strict=True)
    ]
    ends = [math.ceil(unit * (1 - limit - _NEAR)) for limit in limits.tolist()]
    j = (n < jnp.asarray(np.clip(ends, 0, np.iinfo(np.int32).max), jnp.int32)).sum(dtype=jnp.int32)
    counts = rounded(n, lines, counts_of_leaves, jnp.minimum(j, len(lines) - 1))
    return jax.tree.unflatten(treedef, list(counts))


def is_number(sparsity: Any) -> bool:
    """Whether a sparsity is a Python number, or a numpy scalar that counts as one."""
    return isinstance(sparsity, (int, float, np.integer))
