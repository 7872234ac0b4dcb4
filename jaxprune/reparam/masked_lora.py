"""MaskLoRA: low-rank updates that leave pruned weights at zero."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.adapters import adapters, uniform
from jaxprune.reparam.reparameterization import Reparameterization


def masked_lora(
    key: jax.Array,
    rank: int = 16,
    alpha: float = 32.0,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """The network uses w + alpha / rank (down @ up) where w is not zero, and zero elsewhere.

    For params that are pruned: the zeros of what `apply` makes are exactly those of the params, in
    training and after it. A weight that is kept and happens to be zero stays zero. `apply` makes
    the merged kernels: nothing is left to add at inference.

    Arguments, errors, and what weight decay does are those of `lora`.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> adapted = jp.reparam.masked_lora(jax.random.key(0), rank=1, alpha=1.)
    >>> learned = adapted.init({'kernel': jnp.array([[2., 0.], [0., 4.]])})
    >>> learned = learned._replace(down={'kernel': jnp.array([[1.], [-1.]])})
    >>> learned = learned._replace(up={'kernel': jnp.array([[1., .5]])})
    >>> adapted.apply(learned)['kernel']
    Array([[3. , 0. ],
           [0. , 3.5]], dtype=float32)

    Reference: Zimmer et al., 2023, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs.
    """
    factors = lambda name, w, inputs, outputs: (
        uniform(key, name, w, inputs, rank),
        jnp.zeros((rank, outputs), w.dtype),
    )
    used = lambda w, x: jnp.where(w != 0, w + alpha / rank * x, 0)
    return adapters("masked_lora", rank, factors, used, prunable)
