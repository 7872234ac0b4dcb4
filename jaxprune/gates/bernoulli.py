"""Binary gates with a straight-through gradient: drawn, and without chance."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.gates.concrete import through
from jaxprune.gates.gate import Gate, Gates, Logits, check_sample_key, drawn
from jaxprune.trees import map_scored


def bernoulli() -> Gate:
    """Gates that are 1 where u < sigmoid(s), u uniform, else 0; with the gradient of sigmoid(s).

    So dL/ds = dL/dgate * sigmoid'(s): exact where the loss is linear in the gate, biased elsewhere.
    For testing it is 1 where sigmoid(s) > 1/2.

    Reference: Bengio, Leonard and Courville, 2013, Estimating or Propagating Gradients Through
    Stochastic Neurons.
    """

    def one(key: jax.Array, s: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(s)
        wide = p.astype(jnp.promote_types(p.dtype, jnp.float32))  # 16 bits draw no small chances
        return through(jax.random.bernoulli(key, wide).astype(p.dtype), p)

    def sample(key: jax.Array, logits: Logits) -> Gates:
        check_sample_key("bernoulli", key)
        return drawn(one, key, logits)

    p_open = lambda logits: map_scored(jax.nn.sigmoid, logits)
    return Gate(sample, lambda logits: map_scored(_step, logits), p_open)


def straight_through() -> Gate:
    """Gates that are 1 where s > 0, else 0, in training too; the gradient passes unchanged.

    So dL/ds = dL/dgate. Without chance: it takes any key. `p_open` is the gate itself, with that
    gradient, so that a budget counts the open gates.

    Reference: Bengio, Leonard and Courville, 2013, Estimating or Propagating Gradients Through
    Stochastic Neurons.
    """
    gates = lambda logits: map_scored(lambda s: through(_step(s), s), logits)
    return Gate(lambda key, logits: gates(logits), gates, gates)


def _step(s: jax.Array) -> jax.Array:
    return (s > 0).astype(jnp.asarray(s).dtype)
