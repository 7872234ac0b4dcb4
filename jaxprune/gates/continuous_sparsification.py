"""Sigmoid gates whose slope grows until they are steps: continuous sparsification."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import is_known
from jaxprune.gates.gate import Gate, Logits, check_positive
from jaxprune.trees import map_scored


def continuous_sparsification(slope: Any, initial: Any) -> Gate:
    """Gates that are sigmoid(slope s) / sigmoid(initial). Without chance: it takes any key.

    At slope 1, with logits that start at `initial`, every gate starts at 1 and no weight is scaled.
    Raise the slope as training goes on, and the gates become steps: 0 where s < 0, and
    1 / sigmoid(initial) where s > 0:

        slope = optax.exponential_decay(1.0, steps, 200.0)   # from 1 to 200
        logits = logits(kernels(params), logit=0.05)
        gates = continuous_sparsification(slope(step), 0.05).sample(None, logits)

    The masks are `threshold(logits)`, s > 0; the weights under them keep their factor
    1 / sigmoid(initial). `p_open` is sigmoid(slope s), without the factor.

    Args:
      slope: one over the temperature; above 0; may be traced.
      initial: the value at which all logits start, a scalar; may be traced. The lower, the more
        gates close. `math.inf` for plain sigmoids, with a factor of 1.

    Raises:
      ValueError: if the slope is not above 0, or 1 / sigmoid(initial) is not finite.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> logits = {'kernel': jnp.array([.1, 0., -.1])}
    >>> gates = jp.gates.continuous_sparsification(1.0, initial=0.0).deterministic(logits)
    >>> [round(gate, 2) for gate in gates['kernel'].tolist()]
    [1.05, 1.0, 0.95]
    >>> steep = jp.gates.continuous_sparsification(200.0, initial=0.0)
    >>> steep.deterministic(logits)['kernel'].round(3)
    Array([2., 1., 0.], dtype=float32)

    Reference: Savarese, Silva and Maire, 2020, Winning the Lottery with Continuous Sparsification.
    """
    check_positive("continuous_sparsification", "slope", slope)
    _check_initial("continuous_sparsification", initial)
    factor = 1 + jnp.exp(-jnp.asarray(initial, jnp.float32))  # 1 / sigmoid(initial)
    if is_known(factor) and not np.isfinite(factor):
        raise ValueError(
            "continuous_sparsification: gates are divided by sigmoid(initial), which is 0 for "
            f"initial={initial}. Start logits near 0, such as gates.logits(params, logit=0.05)."
        )
    p_open = lambda logits: map_scored(lambda s: jax.nn.sigmoid(slope * s), logits)
    gates = lambda logits: map_scored(lambda p: factor * p, p_open(logits))
    return Gate(lambda key, logits: gates(logits), gates, p_open)


def rewound_logits(logits: Logits, slope: Any, initial: Any) -> Logits:
    """Logits for another round at slope 1: min(slope s, initial).

    Open gates start anew, from where all gates once started. Closed gates start closed; while the
    slope is low they may open again.

    Args:
      logits: at the end of a round.
      slope: that at the end of the round.
      initial: the value at which all logits started in the first round, a scalar.

    Raises:
      TypeError: if `initial` is a tree or an array; with logits of one round as a bound, gates
        that this round began with closed could never open.
      ValueError: if the slope is not above 0.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.gates.rewound_logits({'kernel': jnp.array([.1, -.1])}, slope=200.0, initial=0.05)
    {'kernel': Array([  0.05, -20.  ], dtype=float32)}

    Reference: Savarese, Silva and Maire, 2020, Winning the Lottery with Continuous Sparsification.
    """
    check_positive("rewound_logits", "slope", slope)
    _check_initial("rewound_logits", initial)
    return map_scored(lambda s: jnp.minimum(slope * s, initial), logits)


def _check_initial(what: str, initial: Any) -> None:
    if not (hasattr(initial, "dtype") or isinstance(initial, (int, float))) or np.ndim(initial):
        kind = f"shape {np.shape(initial)}" if hasattr(initial, "dtype") else repr(type(initial))
        raise TypeError(
            f"{what}: initial is the value at which all logits start, one number, such as the "
            f"logit=0.05 given to gates.logits; got {kind}."
        )
