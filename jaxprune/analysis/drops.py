"""Where an accuracy drops, over a list of sparsities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class DropPoint(NamedTuple):
    """Two sparsities that may be called the last good one; they often differ.

    Attributes:
      within: the largest sparsity up to which no score is further below dense than the tolerance.
      sharpest: the sparsity at which the curve bends down most.
    """

    within: float
    sharpest: float


def drop_point(
    sparsities: Sequence[float], scores: Sequence[float], tolerance: float = 1.0
) -> DropPoint:
    """The essential sparsity of a curve: before a score falls much faster than so far.

    There is no equation in the paper: this gives the two rules in use. The spacing of the
    sparsities decides about both; let them be evenly spaced.

    Args:
      sparsities: rising, (points,), at least three; the first is dense.
      scores: (points,), such as accuracies in percent; higher is better.
      tolerance: how far below dense still counts, in units of the scores.

    Raises:
      ValueError: if there are fewer than three points, not as many of both, sparsities that do not
        rise, or nan.

    >>> import jaxprune as jp
    >>> scores = [84.5, 84.6, 84.4, 84.3, 84.1, 83., 79., 66.]
    >>> jp.analysis.drop_point([0., .1, .2, .3, .4, .5, .6, .7], scores)
    DropPoint(within=0.4, sharpest=0.6)

    Reference: Jaiswal et al., 2023, The Emergence of Essential Sparsity in Large Pre-trained
    Models: The Weights that Matter.
    """
    at, y = np.asarray(sparsities, np.float64), np.asarray(scores, np.float64)
    if at.ndim != 1 or at.shape != y.shape or len(at) < 3:
        raise ValueError(
            f"drop_point: sparsities and scores are two lists of at least three numbers, as many "
            f"of both; got shapes {at.shape} and {y.shape}."
        )
    if not (np.diff(at) > 0).all() or not np.isfinite(y).all():
        raise ValueError(
            "drop_point: sparsities must rise, and scores be finite; got sparsities "
            f"{at.tolist()} and scores {y.tolist()}."
        )
    good = np.logical_and.accumulate(y >= y[0] - tolerance)
    slopes = np.diff(y) / np.diff(at)
    bend = np.diff(slopes)
    return DropPoint(float(at[good][-1]), float(at[1 + np.argmin(bend)]))
