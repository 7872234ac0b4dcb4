"""The cost of a network with some of its neurons: weights and FLOPs, counted on the jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from jaxprune.coupling.reader import Program
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.structure import Structure
from jaxprune.programs.flops import Product, costs, count_flops, product_of, turns
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
    """The products of a program, each times its turns; of a cond (turns, products by branch)."""
    found: list = []
    for step in program.steps:
        if costs(step.eqn):
            product = product_of(step.eqn, step.inputs, step.outputs)
            found.append(product._replace(factor=factor * product.factor))
        elif step.eqn.primitive.name == "cond":
            found.append((factor, [collect(branch) for branch in step.inner]))
        elif step.eqn.primitive.name == "while":
            found += [item for inner in step.inner for item in collect(inner, factor)]
        elif step.inner:  # not the derivative, which comes second
            found += collect(step.inner[0], factor * turns(step.eqn))
    return found
