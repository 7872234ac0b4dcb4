"""Variational information bottleneck: gates with a mean and a noise, closed where noise wins."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.gates.gate import Gate, Gates, Logits, check_sample_key, drawn
from jaxprune.trees import map_scored

_SLOPE = 10.0  # of the soft count
_TINY = 1e-8


class Bottleneck(NamedTuple):
    """What a gate of `vib` learns, in place of one logit.

    Attributes:
      mean: pytree of floats, None where nothing is gated.
      log_variance: like `mean`.
    """

    mean: Logits
    log_variance: Logits


def bottleneck(
    key: jax.Array, logits: Logits, mean: float = 1.0, log_variance: float = -9.0
) -> Bottleneck:
    """The first `Bottleneck` of gates like `logits`: nearly open, with little noise; float32.

    Args:
      key: draws normal numbers with standard deviation 0.01, which are added to both.
      logits: of the shapes of the gates, such as `structured.gate_logits(structure)`; their values
        do not matter.

    Raises:
      TypeError: if `key` is no key of jax.random.

    Reference: Dutta et al., 2024, VTrans: Accelerating Transformer Compression with Variational
    Information Bottleneck based Pruning.
    """
    check_sample_key("gates.bottleneck", key)
    around = lambda value: lambda k, s: value + 0.01 * jax.random.normal(k, s.shape, jnp.float32)
    first, second = jax.random.split(key)
    return Bottleneck(
        drawn(around(mean), first, logits), drawn(around(log_variance), second, logits)
    )


def vib() -> Gate:
    """Gates with noise, which information has to pay for: pruned where the noise is larger.

        gate = mean + noise sqrt(variance),   log alpha = log variance - log mean^2
        open where log alpha < 0,   p_open = sigmoid(-10 log alpha)

    The three functions take a `Bottleneck` in the place of logits. An open gate is its mean, which
    is not 1 and may lie outside of [0, 1]: fold it (`structured.apply_gates`) before the cut. Add
    `information` to the loss, and a budget on p_open (`lagrangian`).

    Returns:
      A `Gate`; `deterministic` is the mean, or exactly 0 where the gate is closed.

    >>> import jax.numpy as jnp
    >>> b = Bottleneck(jnp.array([1.0, 0.5]), jnp.array([-9.0, -1.0]))
    >>> vib().deterministic(b), vib().p_open(b).round(4)
    (Array([1., 0.], dtype=float32), Array([1.    , 0.0206], dtype=float32))

    Reference: Dai et al., 2018, Compressing Neural Networks using the Variational Information
    Bottleneck; Dutta et al., 2024, VTrans: Accelerating Transformer Compression with Variational
    Information Bottleneck based Pruning (the soft count is that of its authors' code).
    """

    def sample(key: jax.Array, b: Any) -> Gates:
        check_sample_key("vib", key)
        noise = drawn(lambda k, m: jax.random.normal(k, m.shape, jnp.float32), key, _checked(b)[0])
        drawn_gate = lambda m, e, v: m + e * jnp.exp(0.5 * v)
        return map_scored(drawn_gate, b.mean, noise, b.log_variance)

    def deterministic(b: Any) -> Gates:
        return map_scored(lambda m, a: jnp.where(a < 0, m, 0.0), _checked(b)[0], log_alpha(b))

    def p_open(b: Any) -> Gates:
        return map_scored(lambda a: jax.nn.sigmoid(-_SLOPE * a), log_alpha(b))

    return Gate(sample, deterministic, p_open)


def log_alpha(b: Bottleneck) -> Any:
    """The log of noise over signal, log variance - log(mean^2 + 1e-8): float32, like `b.mean`.

    A gate is closed from 0 on. Minus this is a score, such as for `within_budget`.
    """
    return map_scored(lambda m, v: v - jnp.log(jnp.square(m) + _TINY), *_checked(b))


def information(b: Bottleneck) -> jax.Array:
    """What the open gates let through, 1/2 sum of log(1 + mean^2 / variance): float32 scalar.

    The closed form of the divergence of the gates from noise. Times a strength, added to the loss.

    >>> import jax.numpy as jnp
    >>> round(float(information(Bottleneck(jnp.array([1.0]), jnp.array([-9.0])))), 4)
    4.5001

    Reference: Dai et al., 2018, Compressing Neural Networks using the Variational Information
    Bottleneck.
    """
    # log(1 + m^2 / v) without a quotient that overflows: v may be as small as it likes
    terms = map_scored(
        lambda m, v: jnp.logaddexp(0.0, jnp.log(jnp.square(m) + _TINY**2) - v), *_checked(b)
    )
    total = sum((jnp.sum(x, dtype=jnp.float32) for x in jax.tree.leaves(terms)), jnp.float32(0))
    return 0.5 * total


def _checked(b: Any) -> Bottleneck:
    if not isinstance(b, Bottleneck):
        raise TypeError(
            "gates of vib have a mean and a variance: a gates.Bottleneck, such as "
            f"gates.bottleneck(key, structured.gate_logits(structure)); got {type(b).__name__}."
        )
    return b
