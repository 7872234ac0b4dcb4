"""Scores: what each weight is worth. Params and gradients in, floats out; higher is kept.

A score is a function `(params, *, grads, opt_state, step, **extra) -> scores` that uses the
arguments it needs. Where `params` is None, the scores are None. Products are computed in float32 at
least: in float16 half of them would be zero.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Params, Score, Scores, call_first, check_score, widened
from jaxprune.keys import key_first
from jaxprune.prunable.layers import folded, split_like
from jaxprune.sharding import automatic, explicit_sharding
from jaxprune.trees import by_keys, is_none, map_scored, named_leaves, quoted, with_leaves


def magnitude(params: Params, **_: Any) -> Scores:
    """|w|, like `params`.

    Reference: Han et al., 2015, Learning both Weights and Connections for Efficient Neural
    Networks.
    """
    return map_scored(jnp.abs, params)


def saliency(params: Params, *, grads: Params = None, **_: Any) -> Scores:
    """|w dL/dw|, like `params`: how much the loss changes, to first order, without the weight.

    For complex weights it is the real part of the product, since `jax.grad` conjugates.

    Raises:
      ValueError: without `grads`.

    Reference: Mozer and Smolensky, 1988, Skeletonization; Molchanov et al., 2017, Pruning
    Convolutional Neural Networks for Resource Efficient Inference.
    """
    _need_grads("saliency", params, grads)
    return map_scored(lambda w, g: jnp.abs((widened(w) * widened(g)).real), params, grads)


def gradient(params: Params, *, grads: Params = None, **_: Any) -> Scores:
    """|dL/dw|, like `params`.

    Raises:
      ValueError: without `grads`.
    """
    _need_grads("gradient", params, grads)
    return map_scored(lambda w, g: jnp.abs(g), params, grads)


def fisher(params: Params, *, opt_state: Any = None, **_: Any) -> Scores:
    """|w|^2 nu, like `params`; nu is the optimizer's mean of squared gradients (adam, lamb, ...).

    It estimates the loss without the weight to second order; the curvature is the diagonal of the
    empirical Fisher matrix. nu is zero at the first step: prune later, `every(..., start=...)`.

    Raises:
      ValueError: if `opt_state` has no `nu` for a leaf.

    Reference: Theis et al., 2018, Faster Gaze Prediction with Dense Networks and Fisher Pruning.
    """
    moments = [by_keys(nu) for _, nu in optax.tree.get_all_with_path(opt_state, "nu")]
    stacked = folded(params)  # the state has stacks where the params have layers

    def second_moment(path: str, keys: tuple, w: jax.Array) -> jax.Array:
        nus = [nu[keys] for nu in moments if getattr(nu.get(keys), "shape", None) == w.shape]
        if not nus:
            raise ValueError(
                f"fisher needs the optimizer's second moment `nu` of '{path}', shape {w.shape}; "
                "its state has none. Use adam, adamw, lamb or rmsprop, or another score."
            )
        return nus[0]

    leaves = [
        None if w is None else second_moment(path, keys, w)
        for (path, w), keys in zip(named_leaves(stacked), by_keys(stacked), strict=True)
    ]
    nus = split_like(with_leaves(stacked, leaves), params)
    return map_scored(lambda w, nu: jnp.abs(widened(w)) ** 2 * widened(nu).real, params, nus)


@call_first("jp.random(key)")
@key_first
def random(key: jax.Array) -> Score:
    """Uniform random scores from `key`, folded with the step: each step draws anew.

    Args:
      key: a key of `jax.random`; under `vmap`, one a seed.
    """

    def score(params: Params, *, step: Any = 0, **_: Any) -> Scores:
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.fold_in(key, step), max(len(leaves), 1))
        drawn: list[jax.Array] = []
        kind = lambda w: (w.shape, explicit_sharding(w))
        for (shape, sharding), alike in groupby(leaves, kind):
            n = len(list(alike))
            own = keys[len(drawn) : len(drawn) + n]
            draw = lambda k, s=shape, by=sharding: jax.random.uniform(k, s, out_sharding=by)
            # the layers of a stack in one operation: it compiles once, and the numbers are the same
            drawn += list(jax.vmap(draw)(own)) if n > 1 and sharding is None else map(draw, own)
        return jax.tree.unflatten(treedef, drawn)

    return score


@call_first("jp.lamp()")
def lamp(score: Score = magnitude) -> Score:
    """A score of a score: s_u^2 / sum of s_v^2 over all v of its leaf with s_v >= s_u.

    The largest weight of every leaf scores 1, so that a global threshold empties no layer. Among
    equals the lower index ranks higher, as in `select`. An entry that is inf or nan scores inf and
    counts in no sum: one weight that diverged does not prune its layer.

    Reference: Lee et al., 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning.
    """
    check_score("lamp: score", score)

    def leaf(s: jax.Array) -> jax.Array:
        flat = widened(s).reshape(-1)
        order = jnp.argsort(-flat, stable=True)  # descending; among equals the lower index first
        finite = jnp.where(jnp.isfinite(flat), flat, 0.0)
        # divided by the largest, no square overflows
        largest = jnp.max(jnp.abs(finite), initial=0.0)
        squares = (finite[order] / jnp.where(largest > 0, largest, 1.0)) ** 2
        tail = jnp.cumsum(squares)
        scores = jnp.where(tail > 0, squares / jnp.where(tail > 0, tail, 1.0), 0.0)
        scores = jnp.zeros_like(flat).at[order].set(scores, unique_indices=True)
        return jnp.where(jnp.isnan(flat) | jnp.isposinf(flat), jnp.inf, scores).reshape(s.shape)

    return lambda params, **context: map_scored(
        lambda s: automatic(leaf, s)(s), score(params, **context)
    )


def _need_grads(what: str, params: Params, grads: Any) -> None:
    if grads is None:
        raise ValueError(
            f"{what} needs gradients: call it as {what}(params, grads=grads), or through "
            "sparsify, which passes them to its transform."
        )
    pairs = zip(named_leaves(params), jax.tree.leaves(grads, is_leaf=is_none), strict=True)
    missing = [leaf for leaf, slope in pairs if leaf[1] is not None and slope is None]
    if missing:
        raise ValueError(
            f"{what} needs the gradient of {quoted(missing)}, which is None. Exclude frozen leaves "
            "with prunable=matching(exclude=...)."
        )
