"""ScaleLoRA: kernels times a low-rank matrix, which leaves pruned weights at zero."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.adapters import adapters
from jaxprune.reparam.reparameterization import Reparameterization


def scaled_lora(
    rank: int = 16, prunable: Callable[[Params], Params] = kernels
) -> Reparameterization:
    """The network uses w times down @ up, entry by entry; the factors learn, and w does not.

    All factors start at 1 / sqrt(rank), so that down @ up is 1 and `apply(init(params))` is
    `params`. Zeros stay zero. Arguments, errors, and what weight decay does are those of `lora`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> adapted = jp.reparam.scaled_lora(rank=1)
    >>> learned = adapted.init({'kernel': jnp.array([[1., 0.], [3., 4.]])})
    >>> adapted.apply(learned._replace(up={'kernel': jnp.array([[2., .5]])}))['kernel']
    Array([[2., 0.],
           [6., 2.]], dtype=float32)

    Reference: Zimmer et al., 2023, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs.
    """
    factors = lambda name, w, inputs, outputs: (
        jnp.full((inputs, rank), rank**-0.5, w.dtype),
        jnp.full((rank, outputs), rank**-0.5, w.dtype),
    )
    return adapters("scaled_lora", rank, factors, lambda w, x: w * x, prunable)
