"""Budgets: the fraction of the weights, or of the FLOPs, that gates are expected to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params, is_known, is_mask, shown
from jaxprune.programs.flops import Flops
from jaxprune.selection.counting import n_true
from jaxprune.trees import fitted, present_leaves, quoted


def kept_weights(p_open: Any, params: Params) -> jax.Array:
    """The fraction of the weights of `params` that is kept, expected or counted: float32 scalar.

    A leaf without gates is kept whole; leaves that are None do not count. The cost of gates of
    neurons is `structured.relaxed_cost`.

    Args:
      p_open: probabilities, as `gate.p_open(logits)`, or bool masks. Pytree like `params`, each
        leaf broadcasting against its parameter.
      params: what the budget is about, such as `kernels(params)`.

    Raises:
      ValueError: if they do not fit, or there is nothing to count.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> p_open = {'a': jnp.array([[.5], [0.]]), 'b': None}
    >>> float(jp.gates.kept_weights(p_open, {'a': jnp.ones((2, 3)), 'b': jnp.ones((1, 2))}))
    0.4375
    """
    sizes = {path: math.prod(w.shape) for path, w in present_leaves(params)}
    return _kept("kept_weights", p_open, sizes, params)


def kept_flops(p_open: Any, flops: Flops | Mapping[str, float], params: Params) -> jax.Array:
    """The fraction of the FLOPs that is kept, expected or counted: float32 scalar.

    As `kept_weights`, with each leaf weighted by its FLOPs in place of its size. MACs are half of
    the FLOPs: the fraction is the same. A pruned weight saves what a kernel that skips zeros would.

    Args:
      p_open: probabilities, or bool masks; as for `kept_weights`.
      flops: `count_flops(apply_fn, params, *inputs)`, in which products that read no leaf are
        always kept; or {path: cost}, in any unit, such as a measured time.
      params: of the network; only shapes matter.

    Raises:
      ValueError: if they do not fit, or a gated leaf has no cost.
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
    return _kept("kept_flops", p_open, costs, params, always)


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
    what: str, p_open: Any, costs: Mapping[str, float], params: Params, always: float = 0.0
) -> jax.Array:
    """The cost of each leaf times the mean of its gates, over the cost of all."""
    gates = {path: gate for path, _, gate in fitted(what, p_open, params) if gate is not None}
    free = [(path, None) for path in gates if not costs.get(path)]
    total = sum(costs.values()) + always
    if free or not total > 0:
        raise ValueError(
            f"{what}: nothing that is gated by {quoted(free)} costs anything, and no budget could "
            "close it. Count with these params: count_flops(apply_fn, params, x)."
        )
    fractions: dict[str, Any] = {path: _mean(gate) for path, gate in gates.items()}
    shares = [cost / total * fractions.get(path, 1.0) for path, cost in costs.items()]
    return sum(shares, jnp.float32(always / total))


def _mean(gate: Any) -> jax.Array:
    if is_mask(gate):
        return n_true(gate)[0] / gate.size
    return jnp.mean(gate, dtype=jnp.float32)
