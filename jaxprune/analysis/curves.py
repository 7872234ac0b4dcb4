"""A curved path of low loss between two networks that a barrier keeps apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxprune.analysis.connectivity import lerp
from jaxprune.base import Masks, Params, is_int, is_known
from jaxprune.masks import apply_masks
from jaxprune.methods.combine import fixed
from jaxprune.optimizer.sparsify import sparsify


def bezier(middle: Params, a: Params, b: Params, t: Any) -> Params:
    """The network at `t` on the quadratic Bezier curve from `a` to `b` that `middle` pulls.

        w = (1 - t)^2 a + 2 t (1 - t) middle + t^2 b

    The middle comes first: `partial(bezier, middle)` is a `path` for `loss_along`, `barrier` and
    `instability`. It is exactly `a` at 0 and `b` at 1. A weight that all three prune is zero on the
    whole curve. An infinite weight stays infinite where the equation has no inf - inf.

    >>> import jaxprune as jp
    >>> print(jp.analysis.bezier(1.0, 0.0, 0.0, 0.5))
    0.5
    """
    return lerp(lerp(a, middle, t), lerp(middle, b, t), t)


def fit_curve(
    key: jax.Array,
    loss: Callable[[Params, jax.Array], jax.Array],
    a: Params,
    b: Params,
    optimizer: optax.GradientTransformation,
    steps: int,
    masks: Masks = None,
) -> tuple[Params, jax.Array]:
    """Trains the middle of a Bezier curve between fixed ends: (middle, losses).

        minimize over middle   E_t loss(bezier(middle, a, b, t)),   t ~ U(0, 1), one t a step

    The middle starts half-way on the straight line. Outside `jax.jit` a compiled step is called
    `steps` times; inside it is a `lax.scan`, so that one `vmap` fits curves for many pairs.

    Args:
      key: draws t, and gives `loss` a key for each step.
      loss: `(params, key) -> scalar`, on a batch that the key draws; `lambda params, key: ...`
        of a loss on all data.
      a, b: the ends, trees like each other; they do not change.
      optimizer: any optax optimizer.
      steps: how many, at least 1.
      masks: like the params, bool, None where never pruned; the middle is zero where they are
        False. Give masks that both ends share.

    Returns:
      The middle, like `a`; and the loss at each step's t, float (steps,).

    Raises:
      ValueError, TypeError: if an argument does not fit; it says which.

    Reference: Garipov et al., 2018, Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs.
    """
    if not is_int(steps, 1):
        raise ValueError(f"fit_curve: steps is a number of steps, at least 1; got {steps!r}.")
    middle = lerp(a, b, 0.5)
    if masks is None:
        tx = optax.with_extra_args_support(optimizer)
    else:
        middle = apply_masks(middle, masks)
        tx = sparsify(optimizer, fixed(masks))

    def step(carry: Any, i: Any, key: jax.Array, a: Params, b: Params) -> Any:
        middle, opt_state = carry
        t_key, loss_key = jax.random.split(jax.random.fold_in(key, i))
        t = jax.random.uniform(t_key)
        value, grads = jax.value_and_grad(lambda m: loss(bezier(m, a, b, t), loss_key))(middle)
        updates, opt_state = tx.update(grads, opt_state, middle, value=value)
        return (optax.apply_updates(middle, updates), opt_state), value

    carry = middle, tx.init(middle)
    if not is_known((key, carry)):
        (middle, _), losses = lax.scan(
            lambda carry, i: step(carry, i, key, a, b), carry, jnp.arange(steps)
        )
        return middle, losses
    # in a scan XLA's CPU backend trains convolutions 15 to 65 times slower
    compiled, values = jax.jit(step, donate_argnums=0), []
    carry = jax.tree.map(jnp.copy, carry)  # donated: no two leaves may share memory
    for i in range(steps):
        carry, value = compiled(carry, i, key, a, b)
        values.append(value)
    return carry[0], jnp.stack(values)
