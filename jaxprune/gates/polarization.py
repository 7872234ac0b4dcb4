"""The polarization regularizer: it drives some gates to zero and the others away from it."""

from __future__ import annotations

from typing import Any

import jax

from jaxprune.gates.gate import check_positive
from jaxprune.gates.slimming import magnitude, sum_of
from jaxprune.trees import map_scored


def polarization(gates: Any, t: float = 1.0, alpha: float = 1.0) -> jax.Array:
    """The polarization of gates: t |gates|_1 - |gates - alpha mean|_1, the mean over all; a scalar.

    Smallest where each gate is 0 or at the upper end, at a fraction that `t` sets. Scales of norms
    are such gates too, kept in [0, 1] (`box`).

    Args:
      gates: pytree of floats; None leaves count nothing.
      t: how strong the pull of all to zero is beside that away from the mean.
      alpha: what multiplies the mean.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> [round(float(jp.gates.polarization(jnp.array(x), t=1.2)), 4) for x in ([.5, .5], [0., 1.])]
    [1.2, 0.2]

    Reference: Zhuang et al., 2020, Neuron-level Structured Pruning using Polarization Regularizer.
    """
    check_positive("polarization", "t", t)
    n = sum(x.size for x in jax.tree.leaves(gates))
    mean = alpha * sum_of(gates) / max(n, 1)
    away = map_scored(lambda g: magnitude(g - mean), gates)
    return t * sum_of(map_scored(magnitude, gates)) - sum_of(away)
