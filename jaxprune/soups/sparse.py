"""Sparse model soups: prune, retrain several children of one mask, average, prune again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.allocation.layerwise import global_threshold
from jaxprune.base import (
    Allocation,
    Masks,
    Params,
    Pattern,
    Score,
    check_fraction,
    is_known,
)
from jaxprune.masks import all_kept, apply_masks, like, own_masks, with_own
from jaxprune.masks import sparsity as sparsity_of
from jaxprune.pattern import select, unstructured
from jaxprune.prunable.layers import folded, split_like
from jaxprune.prunable.rules import kernels
from jaxprune.scores import magnitude
from jaxprune.selection.deferred import defer
from jaxprune.selection.drop_grow import among
from jaxprune.soups.average import soup
from jaxprune.trees import count_seeds
from jaxprune.uncut import elementwise

# (params, masks, variation) -> params: retrains one child under these masks, with a new optimizer
Train = Callable[[Params, Masks, Any], Params]


class SoupPhase(NamedTuple):
    """What a phase of sparse model soups came to."""

    params: Params  # the average
    masks: Masks  # of all children, and of the average
    children: Params  # a stack (children,)


def fork(train: Train, params: Params, masks: Masks, variations: Any) -> Params:
    """Children of one network under one mask, trained side by side in one `vmap`: a stack.

    Their average keeps the mask, whatever they learned. With the last masks of gradual pruning or
    of DPF, it is a sparse model soup of pruning during training:

        soup(fork(train, params, get_masks(opt_state), variations))

    Args:
      train: `(params, masks, variation) -> params`, pure. Its optimizer is a new one, such as
        `sparsify(optax.sgd(tickets.llr(rate, steps)), fixed(masks))`.
      params: what they start from; under the masks, if it is not yet.
      masks: theirs, for good.
      variations: what differs between children, any tree of arrays (children, ...): keys for the
        order of the data, weight decays, learning rates, lengths. One of them at a time in the
        paper.

    Returns:
      Params with a leading axis of children, exactly zero where the mask is False.

    Raises:
      ValueError: if there are no variations, or not equally many; if the masks fit neither `params`
        nor what `train` returns.

    Reference: Zimmer et al., 2024, Sparse Model Soups: A Recipe for Improved Pruning via Model
    Averaging.
    """
    count_seeds(variations)
    start = apply_masks(params, masks)
    return jax.vmap(lambda variation: apply_masks(train(start, masks, variation), masks))(
        variations
    )


def phase(
    train: Train,
    params: Params,
    sparsity: Any,
    variations: Any,
    *,
    masks: Masks | None = None,
    score: Score = magnitude,
    allocation: Allocation = global_threshold,
    pattern: Pattern = unstructured,
    prunable: Callable[[Params], Params] = kernels,
    average: Callable[[Params], Params] = soup,
) -> SoupPhase:
    """One phase: prune, retrain children of that one mask, average.

        masks    = select(score(params), allocation, sparsity, pattern)
        children = fork(train, params, masks, variations)
        params   = average(children)

    With one child it is a phase of iterative magnitude pruning. Jitted, it is compiled once for
    all phases: the sparsity may be traced.

    Args:
      train, variations: see `fork`.
      params: the last average, at first a trained network. With batch norm, all variables.
      sparsity: the fraction pruned after this phase, in [0, 1).
      masks: those of the phase before, at least as dense: what is pruned stays pruned. None at
        first.
      score: `params -> scores`; asked once, so that all children have one mask also where it is
        random.
      allocation, pattern: see `select`.
      prunable: `params -> params` with None in place of what is not pruned in this phase.
      average: `children -> params`. With batch norm statistics are made anew, as in
        `lambda children: analysis.recalibrate(update, soup(children), batches)`; to choose
        children, `lambda children: greedy(children, held_out_score).params`.

    Raises:
      ValueError: if the masks are known to be sparser already; and see `select` and `fork`.

    Reference: Zimmer et al., 2024, Sparse Model Soups: A Recipe for Improved Pruning via Model
    Averaging.
    """
    check_fraction(sparsity)
    masks = folded(all_kept(prunable(params))) if masks is None else like(masks, params)
    _check_denser(masks, sparsity)
    left = own_masks(masks, params, prunable)
    own = split_like(params, left, deferred=True)
    ranked = defer(lambda left, own: among(left, score(own)), left, own)
    kept = select(ranked, allocation, sparsity, pattern)
    # should the sparsity fall, nothing revives
    masks = with_own(masks, elementwise(jnp.logical_and, left, kept))
    children = fork(train, params, masks, variations)
    return SoupPhase(average(children), masks, children)


def iterative(
    train: Train, params: Params, sparsities: Any, variations: Any, **how: Any
) -> SoupPhase:
    """Phase after phase, each from the average of the one before, in one `lax.scan`.

    All phases are kept, with all children: where that is too much memory, or for convolutions on
    CPU, which XLA makes slow in a loop, call a jitted `phase` in a Python loop.

    Args:
      train: see `fork`.
      params: a trained network.
      sparsities: the fraction pruned after each phase (phases,), rising, in [0, 1).
      variations: any tree of arrays (phases, children, ...); see `fork`.
      **how: score, allocation, pattern, prunable and average; see `phase`.

    Returns:
      A `SoupPhase` with a leading axis of phases; children are (phases, children, ...).

    Raises:
      ValueError: if sparsities are known to fall or to lie outside [0, 1), or there are not as
        many as variations.

    Reference: Zimmer et al., 2024, Sparse Model Soups: A Recipe for Improved Pruning via Model
    Averaging.
    """
    sparsities = _sparsities(sparsities)
    phases = count_seeds(variations)
    if len(sparsities) != phases:
        raise ValueError(
            f"soups.iterative: variations are (phases, children, ...), and there are "
            f"{len(sparsities)} sparsities; got {phases} phases of variations."
        )
    masks = folded(all_kept(how.get("prunable", kernels)(params)))

    def step(carry: tuple, own: tuple) -> tuple:
        done = phase(train, carry[0], own[0], own[1], masks=carry[1], **how)
        return (done.params, done.masks), done

    return lax.scan(step, (params, masks), (sparsities, variations))[1]


def _check_denser(masks: Masks, sparsity: Any) -> None:
    """ValueError where masks are known to be sparser than this."""
    if not is_known((sparsity, masks)):
        return
    now = float(sparsity_of(masks)) if jax.tree.leaves(masks) else 0.0
    if now > sparsity + 1e-3:  # counts of layers round
        raise ValueError(
            f"soups.phase: the masks have a sparsity of {now:.4g} already, more than the "
            f"{float(sparsity):g} asked for, and what is pruned stays pruned. Ask for more, or "
            "start again with masks=None."
        )


def _sparsities(sparsities: Any) -> jax.Array:
    known = is_known(sparsities)
    values: Any = np.asarray(sparsities) if known else jnp.asarray(sparsities)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            "soups.iterative: sparsities are one a phase, (phases,), such as [0.7, 0.9, 0.98]; "
            f"got {sparsities!r}."
        )
    if known:
        for sparsity in values.tolist():
            check_fraction(sparsity)
        if (np.diff(values) < 0).any():
            raise ValueError(
                "soups.iterative: sparsities rise from phase to phase, for what is pruned "
                f"stays pruned; got {values.tolist()}."
            )
    return jnp.asarray(values)
