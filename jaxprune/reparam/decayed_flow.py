"""Progressive gradient flow: what N:M prunes fades out, and its gradient with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Params
from jaxprune.masks import merged
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.largest import n_of_m
from jaxprune.reparam.reparameterization import Reparameterization, check_learned
from jaxprune.reparam.sr_ste import DenseWeights
from jaxprune.trees import map_scored


def decayed_flow(
    n: int,
    m: int,
    decay: optax.Schedule,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """The network uses the N largest of M inputs, and the others times a factor that falls to 0.

        w * (mask + (1 - mask) D(step))

    The gradient of a pruned weight falls by the same factor. (The authors' code passes it
    unchanged; for that see `sr_ste` with strength 0.) Before the decay, D = 1, training is dense.

    Args:
      n, m: 1 <= n < m; inputs are the axis that a product contracts with, as in `nm`.
      decay: from the step to D in [0, 1]: `lambda t: jnp.maximum(0, 1 - beta * t)` or
        `lambda t: jnp.exp(-beta * t)`, with beta 2e-4. At the end train or test with D = 0.
      prunable: which leaves are pruned; all others are used as they are.

    Raises:
      TypeError: if `apply` gets another tree than `init` makes, or no step.
      ValueError: as `sr_ste`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> two_of_four = jp.reparam.decayed_flow(2, 4, lambda step: 1 / (1 + step))
    >>> learned = two_of_four.init({'kernel': jnp.array([[.5], [-.25], [.125], [-1.]])})
    >>> two_of_four.apply(learned, step=1)['kernel'].ravel()
    Array([ 0.5   , -0.125 ,  0.0625, -1.    ], dtype=float32)

    Reference: Bambhaniya et al., 2024, Progressive Gradient Flow for Robust N:M Sparsity Training
    in Transformers.
    """
    if not callable(decay):
        raise TypeError(
            "decayed_flow: decay is a function from the step to a factor, such as "
            f"lambda step: jnp.exp(-2e-4 * step); got {decay!r}."
        )
    masks_of = n_of_m("decayed_flow", n, m, prunable)

    def init(params: Params) -> DenseWeights:
        masks_of(params)
        return DenseWeights(params)

    def apply(learned: DenseWeights, *, key: Any = None, step: Any = None) -> Params:
        (weights,) = check_learned("decayed_flow", DenseWeights, learned)
        if step is None:
            raise TypeError(
                "decayed_flow: the decay is a function of the step, and there is no step. Call "
                "apply(learned, key=key, step=step)."
            )
        factor = jnp.asarray(decay(step), jnp.float32)

        def faded(w: jax.Array, mask: jax.Array) -> jax.Array:
            return w * jnp.where(mask, 1, factor).astype(w.dtype)

        return merged(weights, map_scored(faded, *masks_of(weights)))

    return Reparameterization(init, apply)
