"""A consensus among inputs: gates that depend on the input, until they no longer do."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.gates.gate import Gates
from jaxprune.trees import map_scored


def consensus(gates: Gates) -> Gates:
    """The mean of each gate over a batch, without its first axis: the share of inputs that open it.

    After training, the gates that most inputs open (`jp.gates.threshold(consensus(gates),
    above=0.5)`) are one network for all inputs, and the function that chose them is dropped.

    Args:
      gates: of a batch: (batch, ...) leaves, binary with a straight-through gradient.
    """
    return map_scored(lambda g: jnp.mean(g, axis=0, dtype=jnp.float32), gates)


def disagreement(gates: Gates) -> jax.Array:
    """The mean of m (1 - m) over all gates, m their mean over a batch: float32 scalar, 0 to 1/4.

    It is 0 if all inputs open the same gates. As a penalty it leads to a consensus.

    Args:
      gates: of a batch: (batch, ...) leaves, binary with a straight-through gradient.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> float(jp.gates.disagreement({'layer': jnp.array([[1., 1.], [1., 0.]])}))
    0.125

    The form m (1 - m) is ours, after the idea of Learning a Consensus Sub-Network with Polarization
    Regularization and One Pass Training.
    """
    means = jax.tree.leaves(consensus(gates))
    return sum(jnp.sum(m * (1 - m)) for m in means) / max(sum(m.size for m in means), 1)
