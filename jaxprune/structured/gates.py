"""Gates of groups: a soft number of neurons, folded into the params that make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.coupling.exactness import closers
from jaxprune.coupling.expressions import Atom, Expr, places
from jaxprune.coupling.structure import Structure
from jaxprune.masks import apply_masks
from jaxprune.structured.check import part_of
from jaxprune.trees import is_none, named_leaves

GroupGates = Mapping[str, Any]  # float (size,) by group; of a group that is not there all are 1


def gate_logits(structure: Structure, logit: float = 1.0) -> dict[str, jax.Array]:
    """Logits of a gate for each neuron: {group: (size,)}, float32, all of value `logit`.

    Groups that are not to be gated may be left out.
    """
    return {
        name: jnp.full((group.size,), logit, jnp.float32)
        for name, group in structure.groups.items()
    }


def apply_gates(structure: Structure, params: Params, gates: GroupGates) -> Params:
    """`params` with the gates folded in: each neuron is multiplied by its own where it is made.

        conv -> norm -> x gate -> relu    is    scale <- gate * scale,  bias <- gate * bias

    All producers of a group (the layers that add to one residual stream) share its gates. Where a
    layer has no norm after it, it is its kernel's outputs and its bias; where what is read can't
    be closed before (softplus(0) is not zero, or the neuron is an input's), the rows of the kernels
    that read it. If a norm over the neurons themselves reads them (layer norm), it is both sides
    of that norm. A gate of 1 changes nothing, and with gates of 0 the network computes what is left
    when these neurons go, but for what `structure.inexact` names: so fold first, then cut.

        small = compact(structure, apply_gates(structure, params, gates), kept)

    No model is edited, and nothing is left to do when the gates are learned: fold them.

    Args:
      structure: of `analyze(fn, params, ...)`, evaluated as the network is in tests.
      gates: float (size,) by group; of a group that is not named all are 1.

    Raises:
      ValueError, TypeError: if gates or params do not fit the structure.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((1, 3)), 'b': jnp.ones((3, 2))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 1)))
    >>> apply_gates(structure, params, {'a': jnp.array([1.0, 0.5, 0.0])})['a']
    Array([[1. , 0.5, 0. ]], dtype=float32)

    Reference: the placement is that of Larson et al., 2023, A Generalization of Continuous
    Relaxation in Structured Pruning.
    """
    gates = check_gates(structure, gates)
    ranks = {path: len(axes) for path, axes in structure.axes.items()}
    factors: dict[str, Any] = {}
    for name, members in gated(structure).items():
        for path, axis in members if name in gates else ():
            others = [i for i in range(ranks[path]) if i != axis]
            own = _along(structure.axes[path][axis], structure.atoms[name], gates[name])
            own = jnp.expand_dims(own, others)
            factors[path] = factors[path] * own if path in factors else own
    leaves = [factors.get(path) for path, _ in named_leaves(structure.shapes)]
    treedef = jax.tree.structure(structure.shapes, is_leaf=is_none)
    folded = jax.tree.unflatten(treedef, leaves)
    return apply_masks(params, part_of(structure, folded, params, "apply_gates"))


def gated(structure: Structure) -> dict[str, tuple[tuple[str, int], ...]]:
    """By group, the leaves and their axes that its gates multiply, in the order of the data."""
    found = closers(structure.program, structure.axes, structure.atoms.values())
    return {name: found.get(atom, ()) for name, atom in structure.atoms.items()}


def check_gates(structure: Structure, gates: GroupGates) -> dict[str, jax.Array]:
    """`gates` as arrays, or an error that says how they do not fit the structure."""
    if not isinstance(gates, Mapping):
        raise TypeError(
            "gates of groups are {group: (size,)}, such as those of "
            f"structured.gate_logits(structure); got {type(gates).__name__}."
        )
    for name, own in gates.items():
        n = structure.size_of(name)
        if np.shape(own) != (n,):
            raise ValueError(
                f"the gates of group '{name}' have shape {np.shape(own)}, its neurons are ({n},). "
                "If the gates have a leading axis of seeds, use vmap."
            )
    return {name: jnp.asarray(own, jnp.float32) for name, own in gates.items()}


def _along(e: Expr, atom: Atom, gate: jax.Array) -> jax.Array:
    """The gate of each entry of an axis, 1 where it is not one of the neurons."""
    whole = None
    for where in places(e, atom):
        if np.array_equal(where, np.arange(len(gate))):
            own = gate
        else:
            own = jnp.where(where < 0, 1.0, gate[np.maximum(where, 0)])
        whole = own if whole is None else whole * own
    assert whole is not None  # the axis is one of the group's
    return whole
