"""A stack: trees of one kind as one tree, each leaf with a leading axis of seeds."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxprune.prunable.rules import named_leaves

HOW_TO_STACK = "From separate trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)."


def count_seeds(stack: Any) -> int:
    """The length of the leading axis that all leaves share, at least 1.

    Raises:
      ValueError: if there is none, it differs from leaf to leaf, or is 0.
    """
    leaves = [(leaf_name, jnp.shape(x)) for leaf_name, x in named_leaves(stack) if x is not None]
    if not leaves:
        raise ValueError("a stack of seeds needs at least one array; every leaf is None.")
    for leaf_name, shape in leaves:
        if not shape:
            raise ValueError(
                f"in a stack every leaf has a leading axis of seeds; '{leaf_name}' is a scalar. "
                + HOW_TO_STACK
            )
    (first, (seeds, *_)), *_ = leaves
    for leaf_name, shape in leaves:
        if shape[0] != seeds:
            raise ValueError(
                f"in a stack every leaf has the same number of seeds; '{first}' has {seeds} and "
                f"'{leaf_name}' {shape[0]}, of shape {shape}. {HOW_TO_STACK}"
            )
    if not seeds:
        raise ValueError(f"this stack has no seeds: '{first}' has shape {leaves[0][1]}.")
    return seeds
