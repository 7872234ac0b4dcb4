"""Progressive gradient flow, stepwise: N falls from M - 1 in equal frames of the training."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.largest import n_of_m
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.reparam.sr_ste import DenseWeights, pulled
from jaxprune.trees import map_scored


def stepwise_flow(
    n: int,
    m: int,
    steps: int,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """The network uses M - 1 of M inputs, then M / 2, M / 4, and so on to N; all weights learn.

    The patterns 15:16, 8:16, 4:16, 2:16, 1:16 take as many steps each: log2(M / N) + 1 frames.
    The gradient passes unchanged to pruned weights, as in `sr_ste` with strength 0.

    Args:
      n, m: 1 <= n < m, and m / n a power of 2; inputs are the axis that a product contracts with,
        as in `nm`.
      steps: the steps of all frames, as many as there are frames or more. Afterwards it is N:M.
      prunable: which leaves are pruned; all others are used as they are.

    Raises:
      TypeError: if `apply` gets another tree than `init` makes, or no step.
      ValueError: as `sr_ste`, if m / n is no power of 2, or for too few steps.

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
    masks_of = n_of_m("stepwise_flow", n, m, prunable)
    halvings = int(np.log2(m / n))
    if n * 2**halvings != m:
        raise ValueError(
            f"stepwise_flow: N is halved from M on, so M / N is a power of 2; got {n}:{m}."
        )
    frames = [m - 1, *(m >> i for i in range(1, halvings + 1))]
    if not isinstance(steps, int) or steps < len(frames):
        raise ValueError(f"stepwise_flow: {len(frames)} frames need as many steps; got {steps!r}.")

    def init(params: Params) -> DenseWeights:
        masks_of(params)
        return DenseWeights(params)

    def apply(learned: DenseWeights, *, key: Any = None, step: Any = None) -> Params:
        (weights,) = check_learned("stepwise_flow", DenseWeights, learned)
        if step is None:
            raise TypeError(
                "stepwise_flow: N is a function of the step, and there is no step. Call "
                "apply(learned, key=key, step=step)."
            )
        starts = jnp.asarray([-(-i * steps // len(frames)) for i in range(1, len(frames))])
        now = jnp.asarray(frames)[(jnp.asarray(step) >= starts).sum()]
        return merged(weights, map_scored(partial(pulled, 0.0), *masks_of(weights, now)))

    return Reparameterization(init, apply)
