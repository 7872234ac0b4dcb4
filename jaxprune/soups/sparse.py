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
    check_score,
    check_sparsity,
    is_count,
    is_known,
)
from jaxprune.masks import all_kept, apply_masks, like, merged, prunable_parts
from jaxprune.masks import sparsity as sparsity_of
from jaxprune.one_shot import select
from jaxprune.pattern import unstructured
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import kernels
from jaxprune.scores import magnitude
from jaxprune.selection.deferred import defer
from jaxprune.selection.drop_grow import among
from jaxprune.selection.uncut import elementwise
from jaxprune.soups.average import soup
from jaxprune.trees import count_seeds

# (params, masks, variation) -> params: retrains one child under these masks, with a new optimizer
Train = Callable[[Params, Masks, Any], Params]


class SoupPhase(NamedTuple):
    """The result of a phase of sparse model soups."""

    params: Params  # the average
    masks: Masks  # shared by the children and the average
    children: Params  # a stack (children,)


def fork(train: Train, params: Params, masks: Masks, variations: Any) -> Params:
    """Children of one network under one mask, trained side by side in one `vmap`: a stack.

    Their average keeps the mask. With the last masks of gradual pruning or of DPF, it is a sparse
    model soup of pruning during training:

        soup(fork(train, params, get_masks(opt_state), variations))

    Args:
      train: `(params, masks, variation) -> params`, pure. It makes a new optimizer, such as
        `sparsify(optax.sgd(tickets.llr(rate, steps)), fixed(masks))`.
      params: where the children start; the masks are applied to it.
      masks: fixed for all children.
      variations: the differences between children, a tree of arrays (children, ...): keys for the
        order of the data, weight decays, learning rates, lengths. The paper varies one at a time.

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

    With one child it is a phase of iterative magnitude pruning. Under `jit` it compiles once for
    all phases: the sparsity may be traced.

    Args:
      train, variations: see `fork`.
      params: the last average, at first a trained network. With batch norm, all variables.
      sparsity: the fraction pruned after this phase, in [0, 1); an integer is how many weights.
      masks: of the phase before, at least as dense: what is pruned stays pruned. None at first.
      score: `params -> scores`; called once, so that all children have one mask even if it is
        random.
      allocation, pattern: see `select`.
      prunable: `params -> params` with None in place of what is not pruned in this phase.
      average: `children -> params`. With batch norm it makes statistics anew:
        `lambda children: analysis.recalibrate(update, soup(children), batches)`; to choose
        children, `lambda children: greedy(children, held_out_score).params`.

    Raises:
      ValueError: if the masks are known to be sparser already; and see `select` and `fork`.

    Reference: Zimmer et al., 2024, Sparse Model Soups: A Recipe for Improved Pruning via Model
    Averaging.
    """
    check_score("soups.phase: score", score)
    masks = folded(all_kept(prunable(params))) if masks is None else like(masks, params)
    size = sum(mask.size for mask in jax.tree.leaves(masks))
    check_sparsity(sparsity, size or None)
    _check_denser(masks, sparsity / max(size, 1) if is_count(sparsity) else sparsity)
    left, weights, _ = prunable_parts(prunable, masks, params)
    ranked = defer(lambda left, weights: among(left, score(weights)), left, weights)
    highest = select(ranked, allocation, sparsity, pattern)
    # if the sparsity falls, nothing revives
    masks = merged(masks, elementwise(jnp.logical_and, left, highest))
    children = fork(train, params, masks, variations)
    return SoupPhase(average(children), masks, children)


def iterative(
    train: Train, params: Params, sparsities: Any, variations: Any, **how: Any
) -> SoupPhase:
    """Phase after phase, each from the average of the one before, in one `lax.scan`.

    The result holds all phases with all children. If that is too much memory, or for convolutions
    on CPU, which XLA makes slow in a loop, call a jitted `phase` in a Python loop.

    Args:
      train: see `fork`.
      params: a trained network.
      sparsities: the fraction pruned after each phase (phases,), rising, in [0, 1); integers are
        numbers of weights.
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

    def step(carry: tuple[Params, Masks], inputs: tuple) -> tuple:
        done = phase(train, carry[0], *inputs, masks=carry[1], **how)
        return (done.params, done.masks), done

    return lax.scan(step, (params, masks), (sparsities, variations))[1]


def _check_denser(masks: Masks, sparsity: Any) -> None:
    """ValueError where masks are known to be sparser than this."""
    if not is_known((sparsity, masks)):
        return
    now = float(sparsity_of(masks)) if jax.tree.leaves(masks) else 0.0
    if now > sparsity + 1e-3:  # counts of layers round
        raise ValueError(
            f"soups.phase: the masks have a sparsity of {now:.4g} already, wanted "
            f"{float(sparsity):g}; what is pruned stays pruned. Give a higher sparsity, or start "
            "again with masks=None."
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
            check_sparsity(sparsity)
        if (np.diff(values) < 0).any():
            raise ValueError(
                "soups.iterative: sparsities rise from phase to phase: what is pruned stays "
                f"pruned; got {values.tolist()}."
            )
    return jnp.asarray(values)
