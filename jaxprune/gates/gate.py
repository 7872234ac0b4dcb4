"""The type of a family of gates, and the logits of gates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params, is_known, shown
from jaxprune.prunable.layout import axes_of, spatial
from jaxprune.prunable.rules import layouts_of
from jaxprune.trees import map_named

Logits = Any  # pytree of floats; None where nothing is gated
Gates = Any  # like the logits, in [0, 1]


class Gate(NamedTuple):
    """A family of gates: pure functions of a pytree of logits, None where nothing is gated.

    Attributes:
      sample: `(key, logits) -> gates` for training, in [0, 1] (or up to the factor of
        `continuous_sparsification`). Each key draws new gates, so fold it with the step. The sample
        has a gradient with respect to the logits. Families without randomness take any key, also
        None.
      deterministic: `logits -> gates`, in the same range, for testing.
      p_open: `logits -> probabilities` that a gate is not 0. Their sum is the expected number of
        open gates, and differentiable: what budgets read.
    """

    sample: Callable[[Any, Logits], Gates]
    deterministic: Callable[[Logits], Gates]
    p_open: Callable[[Logits], Gates]


def logits(params: Params, axes: int | Sequence[int] | None = None, logit: float = 0.0) -> Logits:
    """Logits of gates for `params`: float32, with the rank of each leaf, so that gates broadcast
    against it; None where a leaf is None.

    Args:
      params: what to gate, such as `kernels(params)`.
      axes: along these axes every entry has a gate; along the others all entries share one. None: a
        gate for each weight. (): one for each leaf. The axes of a kernel count as (spatial...,
        inputs, outputs): -2 is each input neuron or channel, also of attention's kernels, which
        have more axes, for heads.
      logit: their value.

    Raises:
      ValueError: if a leaf has no such axis, which axes are inputs and outputs can't be known, or
        there is nothing to gate.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.gates.logits({'kernel': jnp.ones((3, 2)), 'bias': None}, axes=-2)['kernel'].shape
    (3, 1)
    """
    if not jax.tree.leaves(params):
        raise ValueError("gates.logits: there is nothing to gate, every leaf is None.")
    wanted = (axes,) if isinstance(axes, int) else axes

    layouts = layouts_of("gates.logits", params) if wanted else {}

    def gated(leaf_name: str, w: jax.Array) -> Collection[int]:
        """The axes of a leaf along which every entry has a gate."""
        if not wanted:
            return range(w.ndim) if wanted is None else ()
        layout = layouts[leaf_name]
        window = [(axis,) for axis in spatial(layout, w.ndim)]
        sides = [axes_of(layout.inputs, w.ndim), axes_of(layout.outputs, w.ndim)]
        parts = [*window, *sides] if w.ndim > 1 else sides[1:]
        if any(not -len(parts) <= a < len(parts) for a in wanted):
            raise ValueError(
                f"gates.logits: '{leaf_name}' has shape {w.shape}, and not all of the axes {axes}. "
                "Leave it out (jp.matching(exclude=...)), or choose other axes."
            )
        return [axis for a in wanted for axis in parts[a]]

    def leaf_logits(leaf_name: str, w: jax.Array) -> jax.Array:
        gate_axes = gated(leaf_name, w)
        shape = tuple(n if axis in gate_axes else 1 for axis, n in enumerate(w.shape))
        return jnp.full(shape, logit, jnp.float32)

    return map_named(leaf_logits, params)


def drawn(f: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array, logits: Logits) -> Gates:
    """`f(key, leaf)` for every leaf, with one key a leaf."""
    leaves, treedef = jax.tree.flatten(logits)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(treedef, [f(k, s) for k, s in zip(keys, leaves, strict=False)])


def check_sample_key(what: str, key: Any) -> None:
    """TypeError unless `key` is one of jax.random."""
    if not (hasattr(key, "dtype") and hasattr(key, "shape")):
        raise TypeError(
            f"{what}: sample(key, logits) needs a key of jax.random, such as "
            f"jax.random.fold_in(key, step); got {shown(key)}. "
            "Without chance: deterministic(logits)."
        )


def check_positive(what: str, argument: str, value: Any) -> None:
    """ValueError if `value` is known, and not above 0."""
    if is_known(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{what}: {argument} must be above 0; got {value}.")


def noise(key: jax.Array, like: jax.Array, floor: float = 1e-6) -> jax.Array:
    """Logistic noise, log u - log(1 - u) with u uniform in (floor, 1 - floor): float32."""
    u = jax.random.uniform(key, like.shape, jnp.float32, floor, 1 - floor)
    return jnp.log(u) - jnp.log1p(-u)
