"""Gates of neurons: one vector for each group of a coupling, for all axes that it indexes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.coupling import Axis, Coupling, Group, check_coupling
from jaxprune.gates.gate import Logits
from jaxprune.trees import is_none, named_leaves


def neuron_logits(coupling: Coupling, params: Params, logit: float = 0.0) -> Logits:
    """Logits of a gate for each neuron: {group: (neurons,)}, float32, all of value `logit`."""
    groups = check_coupling(coupling, params)
    return {group: jnp.full((n,), logit, jnp.float32) for group, (n, _) in groups.items()}


def neuron_gates(gates: Mapping[str, jax.Array], coupling: Coupling, params: Params) -> Params:
    """Gates of neurons as gates like `params`, for `apply_masks`; None where nothing reads them.

    A gate multiplies what its neuron sends: the rows of each kernel that reads it (axis -2, flax's
    inputs). So it acts after norms and nonlinearities, which could undo it before.

    Args:
      gates: {group: (neurons,)}.
      coupling: which axes the groups index; see `jaxprune.coupling`.
      params: of the network; only shapes matter.

    Raises:
      ValueError: if they do not fit, or no kernel reads a group.
    """
    axes = _axes(gates, coupling, params)
    readers = {path: [(g, a) for g, a in own if _reads(a, params)] for path, own in axes.items()}
    unread = set(gates) - {group for own in readers.values() for group, _ in own}
    if unread:
        raise ValueError(
            f"neuron_gates: no kernel reads {sorted(unread)} along its axis -2. Add the reader's "
            "axis to the coupling, or write gates that broadcast against the params by hand."
        )
    return _like(params, {p: _product(gates, own, p, params) for p, own in readers.items() if own})


def neuron_masks(kept: Mapping[str, jax.Array], coupling: Coupling, params: Params) -> Params:
    """Masks of the weights between neurons that are kept: bool, like `params`.

    False wherever one of the neurons that index a weight is not kept; None where `params` is, and
    where no group indexes. What a pruned neuron sends is pruned, so that its norm and its bias may
    stay: give `kernels(params)` to leave them out.

    Args:
      kept: {group: bool (neurons,)}.
      coupling, params: as for `neuron_gates`.

    Raises:
      ValueError: if they do not fit.
    """
    axes = _axes(kept, coupling, params)
    whole = {
        path: jnp.broadcast_to(
            _product(kept, own, path, params), dict(named_leaves(params))[path].shape
        )
        for path, own in axes.items()
    }
    return _like(params, whole)


def _axes(
    gates: Mapping[str, Any], coupling: Coupling, params: Params
) -> dict[str, list[tuple[str, Axis]]]:
    """Path -> the groups that index the leaf, and along which axis."""
    groups = check_coupling(coupling, params)
    check_groups(gates, groups)
    found: dict[str, list[tuple[str, Axis]]] = {}
    for group in gates:
        for axis in groups[group].axes:
            found.setdefault(axis.path, []).append((group, axis))
    return found


def check_groups(gates: Any, groups: Mapping[str, Group]) -> None:
    """ValueError unless there is a gate for each neuron of the groups named."""
    if not isinstance(gates, Mapping):
        raise TypeError(
            "gates of neurons are {group: (neurons,)}, as neuron_logits(coupling, params) makes "
            f"them; got {type(gates).__name__}."
        )
    for group, gate in gates.items():
        if group not in groups:
            raise ValueError(f"the coupling has no group '{group}'; it has {sorted(groups)}.")
        if jnp.shape(gate) != (groups[group].size,):
            raise ValueError(
                f"the gates of group '{group}' have shape {jnp.shape(gate)}, and it has "
                f"{groups[group].size} neurons: ({groups[group].size},). If the gates have a "
                "leading axis of seeds, use vmap."
            )


def _reads(axis: Axis, params: Params) -> bool:
    ndim = dict(named_leaves(params))[axis.path].ndim
    return ndim >= 2 and axis.axis == ndim - 2


def _product(gates: Mapping[str, Any], own: Any, path: str, params: Params) -> jax.Array:
    """The gates along the axes of one leaf, of its rank."""
    ndim, factors = dict(named_leaves(params))[path].ndim, []
    for group, axis in own:
        along = jnp.tile(jnp.repeat(gates[group], axis.inner), axis.outer)
        factors.append(jnp.expand_dims(along, [a for a in range(ndim) if a != axis.axis]))
    product = factors[0]
    for factor in factors[1:]:
        product = product & factor if product.dtype == bool else product * factor
    return product


def _like(params: Params, by_path: Mapping[str, Any]) -> Params:
    treedef = jax.tree.structure(params, is_leaf=is_none)
    return jax.tree.unflatten(treedef, [by_path.get(path) for path, _ in named_leaves(params)])
