"""Gates of groups: a soft number of neurons, folded into the params that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from jaxprune.trees import named_leaves, with_leaves

GroupGates = Mapping[str, Any]  # float (size,) by group; of a group that is not there all are 1


def gate_logits(structure: Structure, logit: float = 1.0) -> dict[str, jax.Array]:
    """Logits of a gate for each neuron: {group: (size,)}, float32, all of value `logit`.

    Groups that are not to be gated may be left out.
    """
    return {
        name: jnp.full((group.size,), logit, jnp.float32)
        for name, group in structure.groups.items()
    }


def apply_gates(
    structure: Structure, params: Params, gates: GroupGates, at_readers: bool = False
) -> Params:
    """`params` with the gates folded in: each neuron is multiplied by its gate where it is made.

        conv -> norm -> x gate -> relu    is    scale <- gate * scale,  bias <- gate * bias

    All producers of a group (the layers that add to one residual stream) share its gates. Where a
    layer has no norm after it, its kernel's outputs and its bias are multiplied. Where the neuron
    can't be closed before it is read (softplus(0) is not zero, or the neuron is an input), the rows
    of the kernels that read it are multiplied. A norm over the neurons (layer norm) has its gates
    on both sides. A gate of 1 changes nothing. With gates of 0 the network computes what is left
    when these neurons go, but for what `structure.inexact` names: so fold first, then cut.

        small = compact(structure, apply_gates(structure, params, gates), kept)

    No model is edited, and nothing is left to do when the gates are learned: fold them.

    Args:
      structure: of `analyze(fn, params, ...)`, evaluated as the network is in tests.
      gates: float (size,) by group; of a group that is not named all are 1.
      at_readers: multiply the rows of every kernel that reads the neuron, after norms and
        nonlinearities. Binary gates need it: the slope of relu(gate * x) at a gate of 0 is 0, so
        that a closed gate before a relu learns nothing from the loss.

    Raises:
      ValueError, TypeError: if gates or params do not fit the structure.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.ones((1, 3)), 'b': jnp.ones((3, 2))}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 1)))
    >>> gates = {'a': jnp.array([1.0, 0.5, 0.0])}
    >>> apply_gates(structure, params, gates)['a']
    Array([[1. , 0.5, 0. ]], dtype=float32)
    >>> apply_gates(structure, params, gates, at_readers=True)['b'][:, 0]
    Array([1. , 0.5, 0. ], dtype=float32)

    Reference: the placement is that of Larson et al., 2023, A Generalization of Continuous
    Relaxation in Structured Pruning.
    """
    factors: dict[str, Any] = {}
    for (path, axis), along in axis_gates(structure, gates, at_readers).items():
        others = [i for i in range(len(structure.axes[path])) if i != axis]
        along = jnp.expand_dims(along, others)
        factors[path] = factors[path] * along if path in factors else along
    leaves = [factors.get(path) for path, _ in named_leaves(structure.shapes)]
    folded = with_leaves(structure.shapes, leaves)
    return apply_masks(params, part_of(structure, folded, params, "apply_gates"))


def per_example(structure: Structure, gates: GroupGates) -> Callable[..., Any]:
    """Gates of each example of a batch, for the layers of a Flax linen module.

        with nn.intercept_methods(per_example(structure, gates)):
            outputs = module.apply(variables, inputs)

    The network computes for every example what `apply_gates(..., at_readers=True)` would make of
    it with the example's gates: layers multiply what they read, or make, along their last axis.
    For gates that depend on the input (`gates.consensus`).

    Args:
      structure: of `analyze(module.apply, variables, inputs)`.
      gates: float (examples, size) by group; of a group that is not named all are 1.

    Returns:
      A method interceptor, as `flax.linen.intercept_methods` takes it.
    """
    along = jax.vmap(lambda gates: axis_gates(structure, gates, at_readers=True))(gates)
    read: dict[str, jax.Array] = {}
    made: dict[str, jax.Array] = {}
    for (path, axis), gate in along.items():
        reads = axis == len(structure.axes[path]) - 2
        (read if reads else made)[path.rpartition("/")[0]] = gate

    def times(x: jax.Array, gate: jax.Array | None) -> jax.Array:
        if gate is None:
            return x
        return x * gate.reshape(len(x), *(1,) * (x.ndim - 2), -1).astype(x.dtype)

    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = "/".join(("params", *context.module.path))
        if context.method_name != "__call__" or layer not in read | made:
            return call(*args, **kwargs)
        x, *rest = args
        return times(call(times(x, read.get(layer)), *rest, **kwargs), made.get(layer))

    return interceptor


def axis_gates(
    structure: Structure, gates: GroupGates, at_readers: bool = False
) -> dict[tuple[str, int], jax.Array]:
    """By leaf and axis, what `apply_gates` multiplies along that axis: (entries of the axis,)."""
    gates = check_gates(structure, gates)
    factors: dict[tuple[str, int], jax.Array] = {}
    for name, members in gated(structure, at_readers).items():
        for path, axis in members if name in gates else ():
            along = _along(structure.axes[path][axis], structure.atoms[name], gates[name])
            factors[path, axis] = factors.get((path, axis), 1.0) * along
    return factors


def gated(structure: Structure, at_readers: bool = False) -> dict[str, tuple[tuple[str, int], ...]]:
    """By group, the leaves and their axes that its gates multiply, in the order of the data."""
    atoms = structure.atoms
    members = closers(structure.program, structure.axes, atoms.values(), at_readers)
    return {name: members.get(atom, ()) for name, atom in atoms.items()}


def check_gates(structure: Structure, gates: GroupGates) -> dict[str, jax.Array]:
    """`gates` as arrays, or an error that says how they do not fit the structure."""
    if not isinstance(gates, Mapping):
        raise TypeError(
            "gates of groups are {group: (size,)}, like "
            f"structured.gate_logits(structure); got {type(gates).__name__}."
        )
    for name, gate in gates.items():
        n = structure.size_of(name)
        if np.shape(gate) != (n,):
            raise ValueError(
                f"the gates of group '{name}' have shape {np.shape(gate)}, its neurons are ({n},). "
                "If the gates have a leading axis of seeds, use vmap."
            )
    return {name: jnp.asarray(gate, jnp.float32) for name, gate in gates.items()}


def _along(e: Expr, atom: Atom, gate: jax.Array) -> jax.Array:
    """The gate of each entry of an axis, 1 where it is not one of the neurons."""
    product = None
    for where in places(e, atom):
        if np.array_equal(where, np.arange(len(gate))):
            along = gate
        else:
            along = jnp.where(where < 0, 1.0, gate[np.maximum(where, 0)])
        product = along if product is None else product * along
    assert product is not None  # the axis is one of the group's
    return product
