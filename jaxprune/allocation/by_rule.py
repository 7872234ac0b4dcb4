"""Allocations by rule: fixed sparsities for some leaves, or the ratios of other scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.allocation.layerwise import erk, global_threshold, is_number, uniform
from jaxprune.base import (
    Allocation,
    Scores,
    Sparsities,
    Sparsity,
    call_first,
    check_allocation,
    check_sparsity,
    is_count,
    shown,
)
from jaxprune.prunable.rules import Rule, check_all_match, matches
from jaxprune.trees import by_keys, check_like, is_none, map_scored, named_leaves, with_leaves


@call_first("jp.per_layer({'head/*': 0.5})")
def per_layer(
    rules: Mapping[Rule, float | Callable[[Sparsity], Sparsity]],
    rest: Allocation | float = uniform,
    compensate: bool = False,
) -> Allocation:
    """Sparsities by rule: the first rule that matches a leaf's path decides; else `rest` does.

    Args:
      rules: from an exact path, glob, compiled regular expression or `(path, leaf) -> bool` to a
        fixed sparsity (an integer is the number of weights pruned of each leaf that matches), or
        to a function of the overall sparsity, a fraction that may be a schedule's.
      rest: the allocation among the leaves that no rule matches; or a number, the sparsity of each
        of them, such as 0 for dense.
      compensate: whether these leaves make up for the others, so that all leaves together reach
        the sparsity; by default they are pruned as if they were alone.

    Raises:
      ValueError: if a rule matches no leaf, a sparsity is outside [0, 1), or the rest can't make up
        for the others.
      TypeError: if `rest` is a number and has to compensate.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> scores = {'body': jnp.ones((2, 5)), 'head': jnp.ones((5, 2))}
    >>> jp.per_layer({'head': 0.5})(scores, 0.9)
    {'body': 0.9, 'head': 0.5}
    >>> jp.per_layer({'h*': lambda s: s / 2})(scores, 0.9)
    {'body': 0.9, 'head': 0.45}
    >>> jp.per_layer({'head': 0.5}, compensate=True)(scores, 0.7)
    {'body': 0.9, 'head': 0.5}
    """
    for sparsity in (*rules.values(), rest):
        if not callable(sparsity):
            check_sparsity(sparsity)
    if callable(rest):
        check_allocation(rest)
    elif compensate:
        raise TypeError(
            "per_layer: with compensate=True the rest makes up for the others, so it has no fixed "
            f"sparsity; got rest={shown(rest)}. Give an allocation, such as uniform."
        )
    of_rest = rest if callable(rest) else lambda scores, _: map_scored(lambda _: rest, scores)

    def allocation(scores: Scores, sparsity: Sparsity) -> Sparsities:
        check_all_match(rules, scores)

        def ruled(leaf_name: str, leaf: Any) -> Any:
            for rule, value in rules.items():
                if leaf is not None and matches(rule, leaf_name, leaf):
                    return check_sparsity(value(overall) if callable(value) else value, leaf.size)
            return None

        named = named_leaves(scores)
        total = sum(x.size for x in jax.tree.leaves(scores))
        overall = sparsity / max(total, 1) if is_count(sparsity) else sparsity
        fixed = [ruled(leaf_name, leaf) for leaf_name, leaf in named]
        free = [leaf if s is None else None for s, (_, leaf) in zip(fixed, named, strict=True)]
        of_free = sparsity
        if compensate:
            of_free = _compensated(sparsity, fixed, [leaf for _, leaf in named])
        others = jax.tree.leaves(of_rest(with_leaves(scores, free), of_free), is_leaf=is_none)
        chosen = [other if s is None else s for s, other in zip(fixed, others, strict=True)]
        return with_leaves(scores, chosen)

    return allocation


@call_first("jp.allocation.uniform_plus('Conv_0/kernel', 'Dense_0/kernel')")
def uniform_plus(first: Rule, last: Rule) -> Allocation:
    """`uniform`, but the first layer is dense and the last keeps at least a fifth of its weights.

    The others make up for it: all leaves together reach the sparsity.

    Args:
      first, last: rules for these leaves, such as 'Conv_0/kernel': a dict has no order of layers.

    Reference: Gale et al., 2019, The State of Sparsity in Deep Neural Networks.
    """
    most = 0.8
    at_most = lambda s: min(s, most) if isinstance(s, float) else jnp.minimum(s, most)
    return per_layer({first: 0.0, last: at_most}, uniform, compensate=True)


@call_first("jp.allocation.erk_plus('head/*')")
def erk_plus(last: Rule, sparsity: float = 0.0) -> Allocation:
    """`erk`, but the last layer has this sparsity, 0 for dense; the others make up for it.

    Reference: Liu et al., 2022, The Unreasonable Effectiveness of Random Pruning: Return of the
    Most Naive Baseline for Sparse Training.
    """
    return per_layer({last: sparsity}, erk, compensate=True)


@call_first("jp.allocation.like(scores)")
def like(scores: Scores, allocation: Allocation = global_threshold) -> Allocation:
    """The sparsities that `allocation` gives these other scores, leaf by leaf.

    With random scores for the weights it uses a criterion for its layer-wise sparsities only:

        ratios = like(saliency(params, grads=grads))
        masks = select(random(key)(kernels(params)), ratios, 0.95)

    Args:
      scores: like the scores that `select` reads, in paths and shapes; more leaves are allowed.
      allocation: computes the sparsities of these scores.

    Raises:
      ValueError: (when used) if a leaf is missing or has another shape.

    Reference: Liu et al., 2022, The Unreasonable Effectiveness of Random Pruning: Return of the
    Most Naive Baseline for Sparse Training.
    """
    check_allocation(allocation)

    def ratios(like: Scores, sparsity: Sparsity) -> Sparsities:
        what, way_out = "allocation.like: the scores to borrow from", "Score the same params."
        check_like(what, scores, like, way_out, extra=True, containers=False)
        lent = by_keys(scores)
        same = [None if leaf is None else lent[keys] for keys, leaf in by_keys(like).items()]
        return allocation(with_leaves(like, same), sparsity)

    return ratios


def _compensated(sparsity: Sparsity, fixed: list[Any], leaves: list[Any]) -> Sparsity:
    """The sparsity of the leaves without a fixed one, for all leaves to have `sparsity`."""
    pairs = [(s, leaf.size) for s, leaf in zip(fixed, leaves, strict=True) if leaf is not None]
    total = sum(size for _, size in pairs)
    rest = sum(size for s, size in pairs if s is None)
    ruled = [(s, size) for s, size in pairs if s is not None]
    if not all(map(is_number, (sparsity, *(s for s, _ in ruled)))):
        return _compensated_in_trace(sparsity, ruled, total, rest)
    pruned = sum(s if is_count(s) else s * size for s, size in ruled)
    in_all = sparsity if is_count(sparsity) else sparsity * total
    needed = (in_all - pruned) / max(rest, 1)
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
    """The same for traced sparsities, at least 0: float32.

    An impossible value is read as 0, which prunes nothing; 1 would prune the rest for good.
    """
    share = lambda s, n: s.astype(jnp.float32) / total if is_count(s) else s * (n / total)
    needed = share(jnp.asarray(sparsity), total) - sum(share(jnp.asarray(s), n) for s, n in ruled)
    needed = needed * (total / max(rest, 1))
    return jnp.where(needed < 1, jnp.maximum(needed, 0.0), 0.0)
