"""A gate for each weight, or for what shares one, learned beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxprune.base import Params
from jaxprune.gates.gate import Gate, Logits
from jaxprune.gates.gate import logits as gate_logits
from jaxprune.masks import apply_masks
from jaxprune.prunable.rules import kernels
from jaxprune.reparam.reparameterization import Reparameterization, check_learned


class WeightGates(NamedTuple):
    """What `weight_gates` trains.

    Attributes:
      weights: the params.
      logits: float32, of the rank of their weight and with one entry for each gate; None where a
        leaf has no gates.
    """

    weights: Params
    logits: Logits


def weight_gates(
    gate: Gate | Callable[[Any], Gate],
    logit: float = 2.0,
    axes: int | tuple[int, ...] | None = None,
    prunable: Callable[[Params], Params] = kernels,
    deterministic: bool = False,
) -> Reparameterization:
    """The network uses w z, with gates z of a family; the weights w and the logits of z learn.

    A price of open gates goes into the loss, such as
    `gates.kept_weights(gate.p_open(learned.logits), kernels(learned.weights))`. The gates become
    masks by `gates.within_budget` or `gates.threshold`. `apply(init(params))` is `params` where the
    gates are 1 at the start.

    Masks of `sparsify` are of `weights`: a weight that is 0 there is 0 in the network. Leave the
    logits out, `prunable=matching(exclude="logits/*")`.

    Args:
      gate: a family, such as `gates.hard_concrete()`; or a function from the step to one, where its
        temperature or slope has a schedule. Then `apply` needs `step`.
      logit: the logits at the start.
      axes: which weights share a gate, as in `gates.logits`. None: each weight has one. -2: one for
        each input neuron or channel.
      prunable: which leaves have gates; all others are used as they are.
      deterministic: False for training: gates are drawn, and `apply` needs `key` if the family has
        randomness. True for testing: `gate.deterministic`, no key.

    Raises:
      TypeError: if `gate` is no family, `apply` gets another tree than `init` makes, or it lacks a
        key or a step that it needs.
      ValueError: if no leaf is prunable, or a leaf has no such axis.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> gated = jp.reparam.weight_gates(jp.gates.bernoulli())
    >>> learned = gated.init({'kernel': jnp.ones((1, 6)), 'bias': jnp.ones(6)})
    >>> gated.apply(learned, key=jax.random.key(1))['kernel']
    Array([[1., 1., 1., 1., 1., 0.]], dtype=float32)

    Reference: Louizos, Welling and Kingma, 2018, Learning Sparse Neural Networks through L0
    Regularization.
    """
    if not isinstance(gate, Gate) and not callable(gate):
        raise TypeError(
            "weight_gates needs a family of gates, such as jp.gates.hard_concrete(), or a function "
            f"from the step to one; got {type(gate).__name__}."
        )

    def init(params: Params) -> WeightGates:
        return WeightGates(params, gate_logits(prunable(params), axes, logit))

    def apply(learned: WeightGates, *, key: jax.Array | None = None, step: Any = None) -> Params:
        weights, logits = check_learned("weight_gates", WeightGates, learned)
        family = gate if isinstance(gate, Gate) else _at(gate, step)
        gates = family.deterministic(logits) if deterministic else family.sample(key, logits)
        return apply_masks(weights, gates)

    return Reparameterization(init, apply)


def _at(gate: Callable[[Any], Gate], step: Any) -> Gate:
    """The family at a step."""
    if step is None:
        raise TypeError(
            "weight_gates: this family of gates is a function of the step, and there is no step. "
            "Call apply(learned, key=key, step=step)."
        )
    family = gate(step)
    if not isinstance(family, Gate):
        raise TypeError(
            "weight_gates: gate is a function of the step that returns a family of gates; it "
            f"returned {type(family).__name__}. For jp.gates.hard_concrete write hard_concrete()."
        )
    return family
