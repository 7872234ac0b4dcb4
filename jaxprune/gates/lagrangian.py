"""A Lagrangian that lands on a budget: its multipliers climb until the constraint holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.gates.budgets import check_target


class Multipliers(NamedTuple):
    """The prices that `lagrangian` learns: float32 scalars, 0 at first.

    Attributes:
      linear: the price of the fraction above the target; negative below it.
      quadratic: it damps the linear price, and only grows.
    """

    linear: jax.Array
    quadratic: jax.Array


def multipliers() -> Multipliers:
    """The multipliers at the start, both 0: params, to be trained with the others."""
    return Multipliers(jnp.zeros(()), jnp.zeros(()))


def lagrangian(multipliers: Multipliers, kept: Any, target: Any) -> jax.Array:
    """To be added to the loss: linear gap + quadratic gap^2, gap = kept / target - 1; a scalar.

    The multipliers must climb while all else descends. Their gradient has its sign flipped, so that
    one optimizer, which minimizes, trains everything. The prices rise as the target falls, and Adam
    must forget earlier gradients. With b2 = 0.9 and a target that falls slowly this

        target = optax.polynomial_schedule(1.0, 0.2, power=3, transition_steps=steps // 2)
        fast = optax.adam(0.05, b2=0.9)
        tx = optax.partition({"weights": optax.adam(1e-3), "gates": fast, "multipliers": fast}, ...)

    reaches the target in 800 steps, with losses from 0.1 to 10. With Adam's default b2 = 0.999 it
    may overshoot.

    Args:
      multipliers: `multipliers()` at first, then as trained.
      kept: the expected fraction that is kept, such as `kept_flops(gate.p_open(logits), ...)`.
      target: the fraction to keep, in (0, 1); may be traced, as of a schedule from 1 to it.

    Raises:
      ValueError: if the target is known, and not in (0, 1).

    >>> import jax, jaxprune as jp
    >>> slope = jax.grad(jp.gates.lagrangian)(jp.gates.multipliers(), 0.75, 0.5)
    >>> float(slope.linear), float(slope.quadratic)
    (-0.5, -0.25)

    Reference: Platt and Barr, 1987, Constrained Differential Optimization; for pruning Wang,
    Wohlwend and Lei, 2020, Structured Pruning of Large Language Models, whose absolute gap pulls
    too little at small targets.
    """
    check_target("lagrangian", target)
    linear, quadratic = (2 * jax.lax.stop_gradient(m) - m for m in multipliers)
    gap = kept / target - 1
    return linear * gap + quadratic * gap**2
