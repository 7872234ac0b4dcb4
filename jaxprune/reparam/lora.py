"""LoRA: low-rank updates of kernels that do not move."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.adapters import adapters, uniform
from jaxprune.reparam.reparameterization import Reparameterization


def lora(
    key: jax.Array,
    rank: int = 16,
    alpha: float = 32.0,
    prunable: Callable[[Params], Params] = kernels,
) -> Reparameterization:
    """The network uses w + alpha / rank down @ up; the factors learn, and w does not.

    `apply(init(params))` is `params`, since `up` starts at zero. What `apply` makes is dense: after
    training, `apply_masks(lora.apply(learned), masks)` prunes it again (LoRA-Prune). For an update
    that keeps zeros see `masked_lora`.

    Kernels with adapters get zero gradients: weight decay still moves them, so leave it out.

    Args:
      key: draws `down`, uniform in +-1/sqrt(inputs).
      rank: of the update, at most the inputs and the outputs of each kernel.
      alpha: a factor of the update, beside 1 / rank.
      prunable: which leaves have adapters; all others are trained as they are.

    Raises:
      TypeError: if `apply` gets another tree than `init` makes.
      ValueError: for a rank that can't be, or if no leaf is prunable; it names the leaf.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> adapted = jp.reparam.lora(jax.random.key(0), rank=1, alpha=2.)
    >>> learned = adapted.init({'kernel': jnp.array([[1., 2.], [3., 4.]])})
    >>> learned = learned._replace(down={'kernel': jnp.array([[1.], [0.]])})
    >>> learned = learned._replace(up={'kernel': jnp.array([[.5, -1.]])})
    >>> adapted.apply(learned)['kernel']
    Array([[2., 0.],
           [3., 4.]], dtype=float32)

    References: Hu et al., 2022, LoRA: Low-Rank Adaptation of Large Language Models; Zimmer et al.,
    2023, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs.
    """
    factors = lambda name, w, inputs, outputs: (
        uniform(key, name, w, inputs, rank),
        jnp.zeros((rank, outputs), w.dtype),
    )
    return adapters("lora", rank, factors, lambda w, x: w + alpha / rank * x, prunable)
