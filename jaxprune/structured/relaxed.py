"""What a network costs under gates: sums of gates in place of numbers of neurons."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.coupling.expressions import Expr, resolved, size
from jaxprune.coupling.structure import Structure
from jaxprune.prunable.layers import folded
from jaxprune.structured.cost import Cost, Product, collect
from jaxprune.structured.gates import GroupGates, check_gates
from jaxprune.trees import present_leaves


def relaxed_cost(
    structure: Structure,
    gates: GroupGates,
    prunable: Callable[[Params], Params] = lambda params: params,
) -> Cost:
    """`cost` with the sum of its gates as the size of each group: float32 scalars, differentiable.

        FLOPs of a convolution = 2 HW window (sum of its inputs' gates)(sum of its outputs' gates)

    For gates of 0 and 1 it is the `cost` of the neurons with gate 1. As in `cost`, FLOPs count all
    matrix products and convolutions, also projections and the last layer, and nothing else. An axis
    without gates counts with its size. An axis of several groups, such as a concatenation, counts
    with the sum or the product of their sizes. Divide by the `cost` of the *first* network, also
    when the structure describes a smaller one:

        relative = relaxed_cost(structure, gates).flops / cost(structure).flops
        loss += strength * jnp.abs(relative - target)

    Args:
      gates: float (size,) by group, such as `gate.p_open(logits)`, or bool; all are 1 of a group
        that is not named.
      prunable: the leaves whose weights count, such as `jp.kernels`; all by default.

    Raises:
      ValueError, TypeError: if the gates do not fit the structure.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((4, 8)), 'b': jnp.ones((8, 2))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 4)))
    >>> float(relaxed_cost(structure, {'a': jnp.full(8, 0.25)}).flops)  # of 96
    24.0

    Reference: Larson et al., 2023, A Generalization of Continuous Relaxation in Structured Pruning.
    """
    gates = check_gates(structure, gates)
    sums = {structure.atoms[name]: jnp.sum(gate) for name, gate in gates.items()}

    def relaxed(e: Expr) -> Any:
        return size(resolved(e), lambda atom: sums.get(atom, atom.size))

    def flops(products: list) -> Any:
        total = jnp.float32(0)
        for item in products:
            if isinstance(item, Product):
                share = float(item.factor) / item.divisor
                total += functools.reduce(lambda n, e: n * relaxed(e), item.axes, share)
            else:
                factor, branches = item
                total += float(factor) * functools.reduce(jnp.maximum, map(flops, branches))
        return total

    frozen = sum(g.size for name, g in structure.groups.items() if name not in gates)
    neurons = sum((jnp.sum(gate) for gate in gates.values()), jnp.float32(frozen))
    counted = present_leaves(folded(prunable(structure.shapes)))
    leaves = [structure.axes[path] for path, _ in counted]
    weights = sum((math.prod(map(relaxed, axes)) for axes in leaves), jnp.float32(0))
    numbers: tuple[Any, ...] = (neurons, weights, flops(collect(structure.program)))
    return Cost._make(jnp.asarray(x, jnp.float32) for x in numbers)
