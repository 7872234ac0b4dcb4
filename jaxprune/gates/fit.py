"""Gates beside their params: matched by path, and checked to broadcast."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.prunable.rules import by_keys, named_leaves, quoted


def fitted(what: str, gates: Any, params: Params) -> list[tuple[str, Any, Any]]:
    """(path, leaf, gate) of each leaf of `params` in order; the gate is None where there is none.

    Raises:
      ValueError: for a gate without its leaf, or one that does not broadcast to it.
    """
    leaves, given = by_keys(params), by_keys(gates)
    known = {keys for keys, leaf in leaves.items() if leaf is not None}
    if unknown := [
        leaf
        for leaf, keys in zip(named_leaves(gates), given, strict=True)
        if leaf[1] is not None and keys not in known
    ]:
        raise ValueError(
            f"{what}: the params have no leaf for the gates of {quoted(unknown)}. Gates are like "
            "the params, with None where nothing is gated; gates by groups of neurons need their "
            "coupling=..."
        )
    found = [
        (path, leaf, given.get(keys))
        for (path, leaf), keys in zip(named_leaves(params), leaves, strict=True)
    ]
    for path, leaf, gate in found:
        if gate is not None and not _broadcasts(np.shape(gate), np.shape(leaf)):
            raise ValueError(
                f"{what}: the gates of '{path}' have shape {np.shape(gate)}, its parameter "
                f"{np.shape(leaf)}. Make them with gates.logits(params, axes); if one of them has "
                "a leading axis of seeds, vmap over both."
            )
    return found


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return len(shape) == len(to) and jnp.broadcast_shapes(shape, to) == to
    except ValueError:
        return False
