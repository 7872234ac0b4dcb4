"""Allocations: how much of each leaf is pruned so that the whole reaches the asked sparsity.

An allocation is a function `(scores, sparsity) -> sparsities`. Most read shapes only;
`global_threshold` reads values. A float is a fraction, an integer a number of weights, of all
leaves together where it is asked for (`jaxprune.base.Sparsity`): `global_threshold` prunes exactly
as many, others round their leaves. Where the sparsity is a Python number so are those of the
layers, even under `jit`; where it is traced (a schedule), so are they, and those of `er` and `erk`
are integers, the ones that the number would give.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
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
    check_sparsity,
    is_count,
    shown,
)
from jaxprune.exact.affine import rounded
from jaxprune.prunable.layout import matrix_shape
from jaxprune.prunable.rules import Rule, check_all_match, layouts_of, matches
from jaxprune.selection.counting import left, n_true, numerator
from jaxprune.selection.largest import largest
from jaxprune.trees import by_keys, check_like, is_none, map_scored, named_leaves, with_leaves

_NEAR = 1e-9  # a density so near to a limit is at it


def uniform(scores: Scores, sparsity: Sparsity) -> Sparsities:
    """The same sparsity for every leaf: of a number of weights its share, rounded."""
    if not is_count(sparsity):
        return map_scored(lambda _: sparsity, scores)
    total = sum(x.size for x in jax.tree.leaves(scores))
    if _is_number(sparsity):
        share = int(sparsity) / max(total, 1)
        return map_scored(lambda _: share, scores)
    leaves, treedef = jax.tree.flatten(scores)
    n, whole = numerator(jnp.asarray(sparsity), total)
    sizes = [x.size for x in leaves]
    counts = rounded(n, [[(Fraction(size, whole), 0) for size in sizes]], sizes)
    return jax.tree.unflatten(treedef, list(counts))


def er(scores: Scores, sparsity: Sparsity) -> Sparsities:
    """Erdos-Renyi: the density of a leaf is proportional to (fan_in + fan_out) / (fan_in fan_out).

    Leaves that would exceed density 1 are dense, tied ones together, and the others make up for
    it, so that the sum of density * size is (1 - sparsity) * total. Heads count with what they
    belong to: a query kernel (inputs, heads, features) has a fan_out of heads * features.

    Raises:
      ValueError: if which axes of a leaf are inputs and outputs can't be known
        (`jaxprune.prunable.layout`).

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
    """What one threshold over the scores of all leaves together prunes of each: integers.

    The counts sum to `round(sparsity * total)` exactly. Among equal scores the earlier leaf is
    kept first. A leaf can lose all its weights: see `report`, or use `lamp` scores.

    Under `jit` it is of the arrays as wholes, however they are laid out. Inside a `shard_map` the
    function sees one shard, and the threshold is that of each shard by itself: of seeds, of which
    a device has its own, that is right; of a model that is cut into shards, select outside.
    """
    leaves, treedef = jax.tree.flatten(scores)
    total = sum(x.size for x in leaves)
    kept = largest(leaves, left(sparsity, total), together=True)
    return jax.tree.unflatten(treedef, [n_true(~mask)[0] for mask in kept])


def per_layer(
    rules: Mapping[Rule, float | Callable[[Sparsity], Sparsity]],
    rest: Allocation | float = uniform,
    compensate: bool = False,
) -> Allocation:
    """Sparsities by rule: the first rule that matches a leaf's path decides, `rest` the others.

    Args:
      rules: from an exact path, glob, compiled regular expression or `(path, leaf) -> bool` to a
        fixed sparsity (an integer is the number of weights pruned of each leaf that matches), or
        to a function of the overall sparsity, a fraction that may be a schedule's.
      rest: the allocation of the leaves that no rule matches, among themselves; or a number, the
        sparsity of each of them, such as 0 for dense.
      compensate: whether these make up for the others, so that the whole reaches the asked
        sparsity; by default they are pruned as if they were alone.

    Raises:
      ValueError: if a rule matches no leaf, a sparsity is outside [0, 1), or the rest can't make up
        for the others.
      TypeError: if `rest` is a number and to compensate.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> scores = {'body': jnp.ones((2, 5)), 'head': jnp.ones((5, 2))}
    >>> jp.per_layer({'head': 0.5})(scores, 0.9)
    {'body': 0.9, 'head': 0.5}
    >>> jp.per_layer({'h*': lambda s: s / 2})(scores, 0.9)
    {'body': 0.9, 'head': 0.45}
    >>> jp.per_layer({'head': 0.5}, compensate=True)(scores, 0.7)
    {'body': 0.9, 'head': 0.5}
    """
    for own in (*rules.values(), rest):
        if not callable(own):
            check_sparsity(own)
    if compensate and not callable(rest):
        raise TypeError(
            f"per_layer: with compensate=True the rest makes up for the others, so it can't have a "
            f"sparsity of its own; got rest={shown(rest)}. Give an allocation, such as uniform."
        )
    of_rest = rest if callable(rest) else lambda scores, _: map_scored(lambda _: rest, scores)

    def allocation(scores: Scores, sparsity: Sparsity) -> Sparsities:
        check_all_match(rules, scores)

        def ruled(leaf_name: str, leaf: Any) -> Any:
            for rule, own in rules.items():
                if leaf is not None and matches(rule, leaf_name, leaf):
                    return check_sparsity(own(overall) if callable(own) else own, leaf.size)
            return None

        named = named_leaves(scores)
        overall = _fraction(sparsity, sum(x.size for x in jax.tree.leaves(scores)))
        own = [ruled(leaf_name, leaf) for leaf_name, leaf in named]
        treedef = jax.tree.structure(scores, is_leaf=is_none)
        left = [leaf if s is None else None for s, (_, leaf) in zip(own, named, strict=True)]
        asked = _compensated(sparsity, own, [leaf for _, leaf in named]) if compensate else sparsity
        others = jax.tree.leaves(of_rest(jax.tree.unflatten(treedef, left), asked), is_leaf=is_none)
        chosen = [other if s is None else s for s, other in zip(own, others, strict=True)]
        return jax.tree.unflatten(treedef, chosen)

    return allocation


def uniform_plus(first: Rule, last: Rule) -> Allocation:
    """`uniform`, but the first layer is dense and the last keeps at least a fifth of its weights.

    The others make up for it: the whole reaches the asked sparsity.

    Args:
      first, last: rules for these leaves, such as 'Conv_0/kernel': dicts know no order of layers.

    Reference: Gale et al., 2019, The State of Sparsity in Deep Neural Networks.
    """
    most = 0.8
    at_most = lambda s: min(s, most) if isinstance(s, float) else jnp.minimum(s, most)
    return per_layer({first: 0.0, last: at_most}, uniform, compensate=True)


def erk_plus(last: Rule, sparsity: float = 0.0) -> Allocation:
    """`erk`, but the last layer has a sparsity of its own, 0 for dense; the others make up for it.

    Reference: Liu et al., 2022, The Unreasonable Effectiveness of Random Pruning: Return of the
    Most Naive Baseline for Sparse Training.
    """
    return per_layer({last: sparsity}, erk, compensate=True)


def like(scores: Scores, allocation: Allocation = global_threshold) -> Allocation:
    """The sparsities that `allocation` gives these other scores, leaf by leaf.

    With random scores to choose the weights, it keeps of a criterion nothing but its ratios:

        ratios = like(saliency(params, grads=grads))
        masks = select(random(key)(kernels(params)), ratios, 0.95)

    Args:
      scores: like those that will be selected from, in paths and shapes; it may have more leaves.
      allocation: what reads them.

    Raises:
      ValueError: (when used) if they lack a leaf, or its shape is another.

    Reference: Liu et al., 2022, The Unreasonable Effectiveness of Random Pruning: Return of the
    Most Naive Baseline for Sparse Training.
    """

    def ratios(own: Scores, sparsity: Sparsity) -> Sparsities:
        what, way_out = "allocation.like: the scores to borrow from", "Score the same params."
        check_like(what, scores, own, way_out, extra=True, containers=False)
        lent = by_keys(scores)
        same = [None if leaf is None else lent[keys] for keys, leaf in by_keys(own).items()]
        return allocation(with_leaves(own, same), sparsity)

    return ratios


def _fraction(sparsity: Sparsity, total: int) -> Sparsity:
    """A number of weights as the fraction of all; a fraction as it is."""
    return sparsity / max(total, 1) if is_count(sparsity) else sparsity


def _compensated(sparsity: Sparsity, own: list[Any], leaves: list[Any]) -> Sparsity:
    """What leaves without an `own` sparsity must have, for the whole to have `sparsity`."""
    pairs = [(s, leaf.size) for s, leaf in zip(own, leaves, strict=True) if leaf is not None]
    total = sum(size for _, size in pairs)
    rest = sum(size for s, size in pairs if s is None)
    ruled = [(s, size) for s, size in pairs if s is not None]
    if not all(map(_is_number, (sparsity, *(s for s, _ in ruled)))):
        return _compensated_in_trace(sparsity, ruled, total, rest)
    pruned = sum(s if is_count(s) else s * size for s, size in ruled)
    asked = sparsity if is_count(sparsity) else sparsity * total
    needed = (asked - pruned) / max(rest, 1)
    if not -1e-9 <= needed < 1:
        raise ValueError(
            f"per_layer: with {pruned:,.0f} of {total - rest:,} weights pruned by rules, the other "
            f"{rest:,} can't make up for them to sparsity {sparsity:g}: they would need "
            f"{needed:.4g}. Change the rules, the sparsity, or compensate=False."
        )
    return round(max(needed, 0.0), 15)  # 0.9, not 0.8999999999999999


def _compensated_in_trace(
    sparsity: Sparsity, ruled: list[tuple[Any, int]], total: int, rest: int
) -> jax.Array:
    """The same of sparsities that are traced, at least 0: float32.

    What can't be is read as 0: it prunes nothing, where 1 would prune all of the rest for good.
    """
    share = lambda s, n: s.astype(jnp.float32) / total if is_count(s) else s * (n / total)
    needed = share(jnp.asarray(sparsity), total) - sum(share(jnp.asarray(s), n) for s, n in ruled)
    needed = needed * (total / max(rest, 1))
    return jnp.where(needed < 1, jnp.maximum(needed, 0.0), 0.0)


def check_end(allocation: Allocation, chosen: Params, last: float | None) -> None:
    """ValueError if an allocation can't mean what a schedule, where it is known, ends at.

    Args:
      chosen: what is prunable; shapes are enough.
      last: the last value of the schedule; None if it is not known.
    """
    if last is None or allocation is global_threshold:  # which means any
        return
    with contextlib.suppress(jax.errors.JAXTypeError):  # one that reads values of numpy
        jax.eval_shape(lambda scores: (allocation(scores, last), None)[1], chosen)


def _proportional(
    what: str, scores: Scores, sparsity: Sparsity, raw: Callable[[tuple[int, ...]], float]
) -> Sparsities:
    """Density of each leaf: min(1, eps * raw(shape)), with eps such that the budget is met.

    Closed form. With the j leaves of largest `raw` dense, the budget d N gives
    eps_j = (d N - N_dense) / (sum of raw N over the rest), and that is right for the first j for
    which no other leaf exceeds density 1, that is for d <= limit_j below.
    """
    leaves, treedef = jax.tree.flatten(scores)
    if not any(x.size for x in leaves):
        return uniform(scores, sparsity)
    layouts = layouts_of(what, scores, either_way=True).values()
    fans = [matrix_shape(layout, x.shape) for layout, x in zip(layouts, leaves, strict=True)]
    sizes = np.array([x.size for x in leaves], np.float64)
    raws = np.array([raw(own) if math.prod(own) else 0.0 for own in fans], np.float64)
    distinct = np.unique(raws)[::-1]  # tied maxima go dense together
    is_dense = raws >= np.concatenate([[np.inf], distinct[:-1]])[:, None]  # (j, leaf)
    n_dense = is_dense @ sizes
    rest = (~is_dense * raws) @ sizes
    limits = (rest / np.where(distinct > 0, distinct, 1.0) + n_dense) / sizes.sum()

    total = sum(x.size for x in leaves)
    if _is_number(sparsity):
        density = 1 - (int(sparsity) / total if is_count(sparsity) else sparsity)
        j = min(np.sum(density > limits + _NEAR), len(limits) - 1)
        eps = (density * sizes.sum() - n_dense[j]) / (rest[j] if rest[j] > 0 else 1.0)
        densities = np.where(is_dense[j], 1.0, np.minimum(eps * raws, 1.0))
        return jax.tree.unflatten(treedef, np.maximum(1 - densities, 0.0).tolist())

    # the same of a sparsity n / whole that is traced: what each leaf loses is a line in n
    n, whole = numerator(jnp.asarray(sparsity), total)

    def line(size: int, own: float, dense: bool, full: float, others: float) -> tuple[Any, Any]:
        """Slope and offset of `size (1 - eps own)`."""
        share = Fraction(0) if dense or not own else size * Fraction(own) / Fraction(others)
        return share * total / whole, 0 if dense else size - share * (total - int(full))

    whole_sizes = [x.size for x in leaves]
    lines = [
        [line(*leaf, full, others) for leaf in zip(whole_sizes, raws, dense, strict=True)]
        for dense, full, others in zip(is_dense, n_dense, rest, strict=True)
    ]
    ends = [math.ceil(whole * (1 - limit - _NEAR)) for limit in limits.tolist()]
    j = (n < jnp.asarray(np.clip(ends, 0, np.iinfo(np.int32).max), jnp.int32)).sum(dtype=jnp.int32)
    counts = rounded(n, lines, whole_sizes, jnp.minimum(j, len(lines) - 1))
    return jax.tree.unflatten(treedef, list(counts))


def _is_number(sparsity: Any) -> bool:
    """Whether a sparsity is one of Python, or of numpy's that count as such."""
    return isinstance(sparsity, (int, float, np.integer))
