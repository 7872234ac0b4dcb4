"""The cost of a network with some of its neurons: weights and FLOPs, counted on the jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxprune.coupling.expressions import Expr
from jaxprune.coupling.reader import Program, Step
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.structure import Structure
from jaxprune.programs.flops import count_flops
from jaxprune.programs.jaxprs import dot_numbers, leading_experts
from jaxprune.structured.kept import Kept, KeptLike, check_kept
from jaxprune.structured.replay import replay


class Cost(NamedTuple):
    """What one call costs.

    Attributes:
      neurons: of all groups together.
      weights: entries of the params.
      flops: of matrix products and convolutions; a multiply and an add are 2.
    """

    neurons: int
    weights: int
    flops: int


def cost(structure: Structure, kept: KeptLike | None = None) -> Cost:
    """What the function costs on its example inputs with only the `kept` neurons, exactly.

    FLOPs are counted as in `jaxprune.programs.flops`: scan times its length, the dearest branch of
    a cond, one turn of a while.

    Args:
      kept: bool (size,) by group, not traced; None keeps all, as does a group that is not named.
        Or a `Removal`: what is not computed any more costs nothing.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((4, 8)), 'b': jnp.ones((8, 2))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 4)))
    >>> cost(structure), cost(structure, {'a': jnp.arange(8) < 2})
    (Cost(neurons=8, weights=48, flops=96), Cost(neurons=2, weights=12, flops=24))
    """
    left = check_kept(structure, {} if kept is None else kept)
    if not left.is_removal:
        return counter(structure)(left.neurons)
    shapes = left.params()
    flops = count_flops(replay(structure, left), shapes, *left.inputs())
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    return Cost(left.n_neurons(), weights, sum(flops.leaves.values()) + flops.other)


def counter(structure: Structure) -> Callable[[Mapping[str, Any]], Cost]:
    """`cost` as a function of `kept`, for many calls: the products are collected once.

    Nothing is checked. A group may keep no neuron: then its axes cost nothing, and what is behind
    them costs what it did.

    Args:
      structure: of `analyze`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((4, 8)), 'b': jnp.ones((8, 2))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 4)))
    >>> count = counter(structure)
    >>> count({'a': jnp.arange(8) < 2}).flops, count({'a': jnp.zeros(8, bool)}).flops
    (24, 0)
    """
    products = collect(structure.program)

    def count(kept: Mapping[str, Any]) -> Cost:
        left = Kept(structure, kept)
        weights = sum(math.prod(left.axes.shape(axes)) for axes in structure.axes.values())
        return Cost(left.n_neurons(), weights, _count(products, left.axes))

    return count


class Product(NamedTuple):
    """factor x the product of the sizes of `axes` / `divisor` FLOPs."""

    factor: int
    axes: tuple[Expr, ...]
    divisor: int = 1


_Branches = tuple  # of lists of products: the dearest counts


def _count(products: list, keep: Keep) -> int:
    total = 0
    for item in products:
        if isinstance(item, Product):
            total += item.factor * math.prod(keep.shape(item.axes)) // item.divisor
        else:
            factor, branches = item
            total += factor * max(_count(branch, keep) for branch in branches)
    return total


def collect(program: Program, factor: int = 1) -> list:
    found: list = []
    for step in program.steps:
        kind, params = step.eqn.primitive.name, step.eqn.params
        if kind in ("dot_general", "ragged_dot_general"):
            found.append(_dot(step, factor))
        elif kind == "conv_general_dilated":
            found.append(_convolution(step, factor))
        elif kind == "cond":
            found.append((factor, [collect(branch) for branch in step.inner]))
        elif kind in ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"):
            found += collect(step.inner[0], factor)  # not the derivative
        else:
            turns = params["length"] if kind == "scan" else 1
            for inner in step.inner:
                found += collect(inner, factor * turns)
    return found


def _dot(step: Step, factor: int) -> Product:
    """2 * outputs * inputs of each; of experts each row is read by one."""
    (contracted, _), _ = dot_numbers(step.eqn)
    results = step.outputs[0][leading_experts(step.eqn) :]
    return Product(2 * factor, (*results, *(step.inputs[0][i] for i in contracted)))


def _convolution(step: Step, factor: int) -> Product:
    """2 * outputs * (inputs / groups) * window; the zeros of an input dilation cost nothing."""
    params, kernel = step.eqn.params, step.inputs[1]
    outputs = params["dimension_numbers"].rhs_spec[0]
    reads = tuple(axis for i, axis in enumerate(kernel) if i != outputs)
    return Product(2 * factor, (*step.outputs[0], *reads), math.prod(params["lhs_dilation"]))
