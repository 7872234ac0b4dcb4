"""Rate and distortion: the sparsities whose measured distortions are least in sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jaxprune.base import (
    Allocation,
    Scores,
    Sparsities,
    Sparsity,
    call_first,
    check_sparsity,
    is_count,
)
from jaxprune.trees import named_leaves, quoted, with_leaves

UNITS = 2000  # of all weights; counts are rounded to these where there are more


@call_first("jp.allocation.least_distortion(curves)")
def least_distortion(curves: Mapping[str, Sequence[float]]) -> Allocation:
    """The sparsity of each leaf, so that the distortions of all together are least.

        min sum_l curve_l(s_l)   such that   sum_l s_l n_l >= s sum_l n_l

    By dynamic programming over leaves: `f_n(pruned) = min_s curve_n(s) + f_(n-1)(pruned - s n)`.
    The curves need not be convex. `calibration.distortion_curves` measures them; that they add up
    is an assumption, which fails at high sparsity.

    Args:
      curves: by the name of a leaf its distortion at sparsities that are evenly spaced from 0 on:
        entry i of k + 1 is that at i / k. The last one, at 1, is never chosen.

    Raises:
      ValueError: for a leaf without a curve, a curve of fewer than three numbers or with nan, or a
        sparsity that no choice reaches.
      TypeError: for a traced sparsity: the choice is made outside of `jit`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> curves = {'a': [0., .1, .3, .9, 2.], 'b': [0., .02, .05, .3, .6, 1., 3.]}
    >>> jp.allocation.least_distortion(curves)({'a': jnp.ones(4), 'b': jnp.ones(6)}, 0.5)
    {'a': 0.5, 'b': 0.5}

    Reference: Xu et al., 2023, Efficient Joint Optimization of Layer-Adaptive Weight Pruning in
    Deep Neural Networks.
    """
    values = checked_curves("least_distortion", curves)

    def allocation(scores: Scores, sparsity: Sparsity) -> Sparsities:
        if isinstance(sparsity, jax.core.Tracer):
            raise TypeError(
                "least_distortion chooses outside of jit: give it a number, no schedule. Take the "
                "sparsities that it returns into jp.per_layer(...)."
            )
        named = [(name, leaf) for name, leaf in named_leaves(scores) if leaf is not None]
        if missing := [pair for pair in named if pair[0] not in values]:
            raise ValueError(f"least_distortion has no curve of {quoted(missing)}.")
        sizes = [int(np.size(leaf)) for _, leaf in named]
        total = sum(sizes)
        share = check_sparsity(sparsity, total)
        wanted = int(share) if is_count(sparsity) else int(np.ceil(float(share) * total - 1e-9))
        chosen = _least([values[name][:-1] for name, _ in named], sizes, wanted)
        steps = {
            name: i / (len(values[name]) - 1) for (name, _), i in zip(named, chosen, strict=True)
        }
        return with_leaves(scores, [steps.get(name) for name, _ in named_leaves(scores)])

    return allocation


def checked_curves(what: str, curves: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """The curves as float64; the last entry may be anything.

    Raises:
      ValueError: for a curve of fewer than three numbers, or with nan or inf before the last.
    """
    values = {name: np.asarray(curve, np.float64) for name, curve in curves.items()}
    for name, curve in values.items():
        if curve.ndim != 1 or len(curve) < 3 or not np.isfinite(curve[:-1]).all():
            raise ValueError(
                f"{what}: the curve of '{name}' is a list of at least three finite "
                f"numbers, at sparsities from 0 to 1; got shape {curve.shape}."
            )
    return values


def _least(curves: list[np.ndarray], sizes: list[int], wanted: int) -> list[int]:
    """The place in each curve, whose last entry is left out, of the least sum of distortions."""
    unit = max(1.0, sum(sizes) / UNITS)
    target = int(np.ceil(wanted / unit - 1e-9))
    best, came = np.zeros(1), []
    best = np.full(target + 1, np.inf)
    best[0] = 0.0
    for curve, size in zip(curves, sizes, strict=True):
        # rounded down, so that at least as many weights are pruned as wanted
        pruned = np.floor(np.arange(len(curve)) / len(curve) * size / unit + 1e-9).astype(int)
        after = np.full(target + 1, np.inf)
        choice = np.zeros(target + 1, int)
        for place, (count, distortion) in enumerate(zip(pruned, curve, strict=True)):
            at = np.minimum(np.arange(target + 1) + count, target)  # more than the target is it
            sums = np.full(target + 1, np.inf)
            np.minimum.at(sums, at, best + distortion)
            better = sums < after
            after[better], choice[better] = sums[better], place
        came.append((pruned, choice, best))
        best = after
    if not np.isfinite(best[target]):
        raise ValueError(
            f"least_distortion: the curves reach no {wanted:,} of {sum(sizes):,} weights; ask for "
            "a lower sparsity, or give curves of more numbers."
        )
    places, at = [], target
    for (pruned, choice, before), curve in zip(reversed(came), reversed(curves), strict=True):
        place = int(choice[at])
        places.append(place)
        count = pruned[place]
        # at the target, it may have been reached from any state that is near enough
        froms = np.arange(max(at - count, 0), at + 1) if at == target else np.array([at - count])
        at = int(froms[np.argmin(before[froms] + curve[place])])
    return places[::-1]
