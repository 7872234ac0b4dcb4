"""One slope for all leaves: sparsities at which the next weight costs each as much distortion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxprune.allocation.distortion import checked_curves
from jaxprune.allocation.layerwise import is_number
from jaxprune.base import (
    Allocation,
    Scores,
    Sparsities,
    Sparsity,
    call_first,
    check_fraction,
    check_sparsity,
    is_count,
)
from jaxprune.trees import named_leaves, quoted, with_leaves


@call_first("jp.allocation.common_slope(curves)")
def common_slope(
    curves: Mapping[str, Sequence[float]],
    power: Mapping[str, float] | None = None,
    least_kept: float = 0.05,
) -> Allocation:
    """The sparsities at which the curves of all leaves have one slope by weight.

        d curve_l(s_l) / d(s_l n_l) = slope,   the slope for which sum_l s_l n_l = s sum_l n_l

    Each curve is replaced by its lower convex hull, on which this is the least sum of distortions.
    With `power` the distortion is `curve_l(s) + lambda P_l (1 - s)`, where lambda is the ratio of
    the mean over leaves of the steepest slope of the curve to the mean of P.

    Args:
      curves: by the name of a leaf its distortion at sparsities that are evenly spaced from 0 to 1:
        of `calibration.quadratic_curves` or `calibration.distortion_curves`.
      power: by the name of a leaf what it takes while dense, such as watts, seconds or FLOPs, in
        any unit; it falls with the weights. None: distortion only.
      least_kept: the fraction of each leaf that always stays.

    Raises:
      ValueError: for a leaf without a curve or without power, a curve of fewer than three numbers
        or with nan, power that is not positive, or a sparsity above `1 - least_kept`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> curves = {'a': [0., 1., 4., 9., 16.], 'b': [0., 3., 12., 27., 48.]}
    >>> jp.allocation.common_slope(curves)({'a': jnp.ones(4), 'b': jnp.ones(4)}, 0.5)
    {'a': 0.75, 'b': 0.25}

    Reference: Xu et al., 2024, LPViT: Low-Power Semi-structured Pruning for Vision Transformers.
    The authors' code takes numeric slopes of smoothed curves by sparsity, not by weight, and adds
    the power of the pruned blocks, which this function takes of the blocks that stay.
    """
    values = checked_curves("common_slope", curves)
    if bad := [(name, None) for name, curve in values.items() if not np.isfinite(curve[-1])]:
        raise ValueError(
            f"common_slope: the last number of the curve of {quoted(bad)} is not finite."
        )
    check_fraction(least_kept)
    if power is not None:
        if missing := [(name, None) for name in values if name not in power]:
            raise ValueError(f"common_slope has no power of {quoted(missing)}.")
        if not all(np.isfinite(watts) and watts > 0 for watts in power.values()):
            raise ValueError(f"common_slope: power is positive; got {dict(power)}.")
    hulls = {name: _hull(curve, 1 - least_kept) for name, curve in values.items()}

    def allocation(scores: Scores, sparsity: Sparsity) -> Sparsities:
        named = [(name, leaf) for name, leaf in named_leaves(scores) if leaf is not None]
        if missing := [pair for pair in named if pair[0] not in values]:
            raise ValueError(f"common_slope has no curve of {quoted(missing)}.")
        sizes = [int(np.size(leaf)) for _, leaf in named]
        total = sum(sizes)
        share = check_sparsity(sparsity, total)
        share = share / total if is_count(share) else share
        if is_number(share) and share > 1 - least_kept + 1e-9:
            raise ValueError(
                f"common_slope: with least_kept {least_kept:g} of each leaf the sparsity is at "
                f"most {1 - least_kept:g}; got {float(share):g}. Choose a lower least_kept."
            )
        own = [hulls[name] for name, _ in named]
        shift = _shift([name for name, _ in named], own, power)
        shares, of_leaf = _table(own, shift, sizes)
        xp = np if is_number(share) else jnp
        found = [xp.interp(share, shares, column) for column in of_leaf]
        chosen = [round(float(x), 12) if is_number(share) else x for x in found]
        by_name = dict(zip((name for name, _ in named), chosen, strict=True))
        return with_leaves(scores, [by_name.get(name) for name, _ in named_leaves(scores)])

    return allocation


def _hull(curve: np.ndarray, last: float) -> tuple[np.ndarray, np.ndarray]:
    """(widths, slopes) of the pieces of the lower convex hull from 0 to the sparsity `last`."""
    rates = np.linspace(0, 1, len(curve))
    inside = rates < last - 1e-12
    ends = np.append(rates[inside], last)
    heights = np.append(curve[inside], np.interp(last, rates, curve))
    at = [0]
    for i in range(1, len(ends)):
        slope = lambda a, b: (heights[b] - heights[a]) / (ends[b] - ends[a])
        while len(at) > 1 and slope(at[-1], i) <= slope(at[-2], at[-1]):
            at.pop()
        at.append(i)
    return np.diff(ends[at]), np.diff(heights[at]) / np.diff(ends[at])


def _shift(
    names: list[str], hulls: list[tuple[np.ndarray, np.ndarray]], power: Mapping[str, float] | None
) -> list[float]:
    """What the power of each leaf takes from its slopes by sparsity."""
    if power is None:
        return [0.0] * len(names)
    weight = np.mean([slopes.max() for _, slopes in hulls]) / np.mean([power[n] for n in names])
    return [float(weight * power[name]) for name in names]


def _table(
    hulls: list[tuple[np.ndarray, np.ndarray]], shift: list[float], sizes: list[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The share of all weights that is pruned at each slope, rising; and the sparsities then."""
    by_weight = [
        (slopes - less) / size for (_, slopes), less, size in zip(hulls, shift, sizes, strict=True)
    ]
    steps = np.unique(np.concatenate(by_weight))
    of_leaf = []
    for (widths, _), slopes in zip(hulls, by_weight, strict=True):
        at = np.searchsorted(slopes, steps, side="right")
        of_leaf.append(np.concatenate([[0.0], np.concatenate([[0.0], np.cumsum(widths)])[at]]))
    shares = sum(n * column for n, column in zip(sizes, of_leaf, strict=True)) / sum(sizes)
    return np.asarray(shares), of_leaf
