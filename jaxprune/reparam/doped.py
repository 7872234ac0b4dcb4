"""Sparse doped: a sparse kernel and a dense product of low rank, both learned."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.allocation.iso_flop import doped as rank_of
from jaxprune.base import Params, check_fraction
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.adapters import adapters, uniform
from jaxprune.reparam.reparameterization import Reparameterization


def doped(
    key: jax.Array, sparsity: float, prunable: Callable[[Params], Params] = kernels
) -> Reparameterization:
    """The network uses w + down @ up, where w is sparse; all three learn.

    The rank of each kernel is `allocation.doped(inputs, outputs, sparsity)`, so that the weights
    that are kept and the factors are as many as those of the dense kernel. Masks are of
    `learned.weights`:

        method = doped(key, 0.9)
        hidden = matching("weights/*kernel")
        tx = sparsify(optax.adam(1e-3), static(key, 0.9, uniform, hidden))

    `apply(init(params))` is `params`, since `up` starts at zero; `down` is uniform in
    +-1/sqrt(inputs).

    Args:
      key: draws `down`.
      sparsity: that w will have, a fraction in [0, 1).
      prunable: which leaves have factors; all others are trained as they are.

    Raises:
      TypeError: if `apply` gets another tree than `init` makes.
      ValueError: if the sparsity is outside [0, 1); (in init) if no leaf is prunable, or a kernel
        is so small that its rank would be 0; it names the leaf.

    Reference: Thangarasa et al., 2024, Sparse-IFT: Sparse Iso-FLOP Transformations for Maximizing
    Training Efficiency.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> method = jp.reparam.doped(jax.random.key(0), 0.5)
    >>> learned = method.init({'kernel': jnp.ones((4, 4))})
    >>> learned.down['kernel'].shape, learned.up['kernel'].shape
    ((4, 1), (1, 4))
    """
    check_fraction(sparsity)

    def factors(name: str, w: jax.Array, inputs: int, outputs: int) -> tuple[jax.Array, jax.Array]:
        rank = rank_of(inputs, outputs, sparsity)
        return uniform(key, name, w, inputs, rank), jnp.zeros((rank, outputs), w.dtype)

    rank = lambda inputs, outputs: rank_of(inputs, outputs, sparsity)
    return adapters("doped", rank, factors, lambda w, x: w + x, prunable, moves=True)
