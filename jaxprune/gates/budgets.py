"""Budgets: the fraction of the weights, or of the FLOPs, that gates are expected to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params, is_known, is_mask, shown
from jaxprune.coupling import Coupling, check_coupling
from jaxprune.gates.neurons import check_groups
from jaxprune.programs.flops import Flops
from jaxprune.selection.counting import n_true
from jaxprune.trees import fitted, named_leaves, quoted


def kept_weights(p_open: Any, params: Params, coupling: Coupling | None = None) -> jax.Array:
    """The fraction of the weights of `params` that is kept, expected or counted: float32 scalar.

    Without gates a leaf is kept whole; leaves that are None do not count. With a coupling a leaf
    keeps the product of what is kept along its axes, (sum of inputs kept) x (sum of outputs kept):
    the neurons of different groups open independently.

    Args:
      p_open: probabilities, as `gate.p_open(logits)`, or bool masks. Pytree like `params`, each
        leaf broadcasting against its parameter; with a coupling {group: (neurons,)}.
      params: what the budget is about, such as `kernels(params)`.
      coupling: which axes the groups of neurons index.

    Raises:
      ValueError: if they do not fit, or there is nothing to count.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> p_open = {'a': jnp.array([[.5], [0.]]), 'b': None}
    >>> float(jp.gates.kept_weights(p_open, {'a': jnp.ones((2, 3)), 'b': jnp.ones((1, 2))}))
    0.4375
    """
    sizes = {path: math.prod(w.shape) for path, w in named_leaves(params) if w is not None}
    return _kept("kept_weights", p_open, sizes, params, coupling)


def kept_flops(
    p_open: Any,
    flops: Flops | Mapping[str, float],
    params: Params,
    coupling: Coupling | None = None,
) -> jax.Array:
    """The fraction of the FLOPs that is kept, expected or counted: float32 scalar.

    As `kept_weights`, with each leaf weighted by its FLOPs in place of its size. MACs are half of
    the FLOPs: the fraction is the same. A pruned input or output channel saves its share of every
    product; a pruned weight saves what a kernel that skips zeros would.

    Args:
      p_open: probabilities, or bool masks; as for `kept_weights`.
      flops: `count_flops(apply_fn, params, *inputs)`, in which products that read no leaf are
        always kept; or {path: cost}, in any unit, such as a measured time.
      params: of the network; only shapes matter.
      coupling: which axes the groups of neurons index.

    Raises:
      ValueError: if they do not fit, or what is gated has no costs.
    """
    costs: Mapping[str, float]
    if isinstance(flops, Flops):
        costs, always = flops.leaves, flops.other
    elif isinstance(flops, Mapping):
        costs, always = flops, 0
    else:
        raise ValueError(
            "kept_flops needs costs: flops=jp.count_flops(apply_fn, params, x), or {path: cost}; "
            f"got {shown(flops)}."
        )
    return _kept("kept_flops", p_open, costs, params, coupling, always)


def excess(kept: Any, target: Any, log: bool = False) -> jax.Array:
    """max(0, kept - target), or with `log` max(0, log(kept / target)): a penalty above a budget.

    Raises:
      ValueError: if the target is known, and not in (0, 1).
    """
    check_target("excess", target)
    over = jnp.log(kept / target) if log else kept - target
    return jnp.maximum(over, 0.0)


def check_target(what: str, target: Any) -> None:
    """ValueError if the fraction to keep is known, and not in (0, 1). A schedule may start at 1."""
    if not is_known(target):
        return
    most = 1 if isinstance(target, (jax.Array, np.ndarray)) else math.nextafter(1, 0)
    if np.ndim(target) != 0 or not 0 < float(target) <= most:
        hint = ""
        if np.ndim(target) == 0 and 1 < float(target) < 100:
            hint = f" For {float(target):g}% write {float(target) / 100:g}."
        raise ValueError(
            f"{what}: the target is the fraction to keep, in (0, 1); got {target}.{hint}"
        )


def _kept(
    what: str,
    p_open: Any,
    costs: Mapping[str, float],
    params: Params,
    coupling: Coupling | None,
    always: float = 0.0,
) -> jax.Array:
    """Each leaf of `costs` shrinks by what is open of the gates on it."""
    on: dict[str, list[str]] = {}  # gates -> leaves
    openness: dict[str, Any] = {}
    if coupling is None:
        for path, _, gate in fitted(what, p_open, params):
            if gate is not None:
                on[path], openness[path] = [path], _mean(gate)
    else:
        groups = check_coupling(coupling, params)
        check_groups(p_open, groups)
        for group, gate in p_open.items():
            on[group], openness[group] = [a.path for a in groups[group].axes], _mean(gate)
    free = [(gate, None) for gate, paths in on.items() if not any(costs.get(p) for p in paths)]
    total = sum(costs.values()) + always
    if free or not total > 0:
        raise ValueError(
            f"{what}: nothing that is gated by {quoted(free)} costs anything, and no budget could "
            "close it. Count with these params: count_flops(apply_fn, params, x)."
        )
    fractions: dict[str, Any] = dict.fromkeys(costs, 1.0)
    for gate, paths in on.items():
        for path in paths:
            fractions[path] = fractions.get(path, 1.0) * openness[gate]
    shares = [cost / total * fractions[path] for path, cost in costs.items()]
    return sum(shares, jnp.float32(always / total))


def _mean(gate: Any) -> jax.Array:
    if is_mask(gate):
        return n_true(gate)[0] / gate.size
    return jnp.mean(gate, dtype=jnp.float32)
