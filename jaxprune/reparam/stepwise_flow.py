"""Progressive gradient flow, stepwise: coarser patterns first, in equal frames of the training."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.largest import n_of_m
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.reparam.sr_ste import DenseWeights, pulled
from jaxprune.trees import map_scored

Frames = Sequence[tuple[int, int]]  # patterns N:M, each for as many steps


def halving(n: int, m: int) -> Frames:
    """M - 1 of M, then M / 2, M / 4, and so on to N: log2(M / N) + 1 frames.

    Raises:
      ValueError: unless m / n is a power of 2.

    >>> halving(1, 16)
    [(15, 16), (8, 16), (4, 16), (2, 16), (1, 16)]
    """
    halvings = int(np.log2(m / n))
    if n * 2**halvings != m:
        raise ValueError(
            f"stepwise_flow: N is halved from M on, so M / N is a power of 2; got {n}:{m}. Another "
            "schedule: frames=jp.reparam.geometric."
        )
    return [(m - 1, m), *((m >> i, m) for i in range(1, halvings + 1))]


def geometric(n: int, m: int, largest: int = 8) -> Frames:
    """The same sparsity in ever smaller groups: 8N of 8M, 4N of 4M, 2N of 2M, N of M.

    Args:
      largest: how many groups the first frame joins, a power of 2; `largest * m` must divide the
        inputs. Other than 8: `frames=partial(jp.reparam.geometric, largest=4)`.

    Raises:
      ValueError: unless `largest` is a power of 2.

    >>> geometric(2, 4)
    [(16, 32), (8, 16), (4, 8), (2, 4)]
    """
    if not (isinstance(largest, int) and largest > 0 and largest & (largest - 1) == 0):
        raise ValueError(f"geometric: largest is a power of 2, such as 8; got {largest!r}.")
    times = [largest >> i for i in range(largest.bit_length())]
    return [(i * n, i * m) for i in times]


def stepwise_flow(
    n: int,
    m: int,
    steps: int,
    prunable: Callable[[Params], Params] = kernels,
    frames: Callable[[int, int], Frames] = halving,
) -> Reparameterization:
    """The network uses a coarser pattern first, and N of M inputs last; all weights learn.

    Each pattern of `frames` takes as many steps: by `halving` 15:16, 8:16, 4:16, 2:16, 1:16. The
    gradient passes unchanged to pruned weights, as in `sr_ste` with strength 0.

    Args:
      n, m: 1 <= n < m; inputs are the axis that a product contracts with, as in `nm`.
      steps: the steps of all frames, as many as there are frames or more. Afterwards it is N:M.
      prunable: which leaves are pruned; all others are used as they are.
      frames: `(n, m) -> patterns`, the last of them (n, m): `halving`, `geometric`, or your own,
        such as `lambda n, m: [(n, 4 * m), (n, 2 * m), (n, m)]`. With groups of several sizes each
        step ranks all sizes.

    Raises:
      TypeError: if `apply` gets another tree than `init` makes, or no step.
      ValueError: as `sr_ste`, for frames that can't be, or for too few steps.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> one_of_four = jp.reparam.stepwise_flow(1, 4, steps=30)
    >>> learned = one_of_four.init({'kernel': jnp.array([[.5], [-.25], [.125], [-1.]])})
    >>> for step in (0, 10, 20):
    ...     print(one_of_four.apply(learned, step=step)['kernel'].ravel())
    [ 0.5  -0.25  0.   -1.  ]
    [ 0.5  0.   0.  -1. ]
    [ 0.  0.  0. -1.]

    Reference: Bambhaniya et al., 2024, Progressive Gradient Flow for Robust N:M Sparsity Training
    in Transformers.
    """
    n_of_m("stepwise_flow", n, m, prunable)
    patterns = _checked(frames(n, m), n, m)
    if not isinstance(steps, int) or steps < len(patterns):
        raise ValueError(
            f"stepwise_flow: {len(patterns)} frames need as many steps; got {steps!r}."
        )
    masks_by_size = {size: n_of_m("stepwise_flow", some, size, prunable) for some, size in patterns}

    def init(params: Params) -> DenseWeights:
        for masks_of in masks_by_size.values():
            masks_of(params)
        return DenseWeights(params)

    def apply(learned: DenseWeights, *, key: Any = None, step: Any = None) -> Params:
        (weights,) = check_learned("stepwise_flow", DenseWeights, learned)
        if step is None:
            raise TypeError(
                "stepwise_flow: N is a function of the step, and there is no step. Call "
                "apply(learned, key=key, step=step)."
            )
        starts = jnp.asarray([-(-i * steps // len(patterns)) for i in range(1, len(patterns))])
        frame = (jnp.asarray(step) >= starts).sum()
        chosen, masks = None, []
        for size, masks_of in masks_by_size.items():
            is_now = jnp.asarray([of == size for _, of in patterns])[frame]
            now = jnp.asarray([some if of == size else 1 for some, of in patterns])[frame]
            chosen, of_size = masks_of(weights, now)
            masks.append(jax.tree.map(lambda mask, is_now=is_now: mask & is_now, of_size))
        either = jax.tree.map(lambda *each: reduce(operator.or_, each), *masks)
        return merged(weights, map_scored(partial(pulled, 0.0), chosen, either))

    return Reparameterization(init, apply)


def _checked(frames: Frames, n: int, m: int) -> Frames:
    patterns = [(some, of) for some, of in frames]
    for some, of in patterns:
        if not 1 <= some < of:
            raise ValueError(f"stepwise_flow: a frame is N:M with 1 <= N < M; got {some}:{of}.")
    if patterns[-1:] != [(n, m)]:
        raise ValueError(f"stepwise_flow: the last frame is {n}:{m}; got the frames {patterns}.")
    return patterns
