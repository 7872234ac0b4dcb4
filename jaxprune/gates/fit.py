"""Gates beside their params: matched by path, and checked to broadcast."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params
from jaxprune.rules import named_leaves, quoted


def fitted(what: str, gates: Any, params: Params) -> list[tuple[str, Any, Any]]:
    """(path, leaf, gate) of each leaf of `params` in order; the gate is None where there is none.

    Raises:
      ValueError: for a gate without its leaf, or one that does not broadcast to it.
    """
    leaves = named_leaves(params)
    own = {path: gate for path, gate in named_leaves(gates) if gate is not None}
    known = {path for path, leaf in leaves if leaf is not None}
    if unknown := [(path, gate) for path, gate in own.items() if path not in known]:
        raise ValueError(
            f"{what}: the params have no leaf for the gates of {quoted(unknown)}. Gates are like "
            "the params, with None where nothing is gated; gates by groups of neurons need their "
            "coupling=..."
        )
    for path, leaf in leaves:
        if path in own and not _broadcasts(np.shape(own[path]), np.shape(leaf)):
            raise ValueError(
                f"{what}: the gates of '{path}' have shape {np.shape(own[path])}, its parameter "
                f"{np.shape(leaf)}. Make them with gate_logits(params, axes); if one of them has a "
                "leading axis of seeds, vmap over both."
            )
    return [(path, leaf, own.get(path)) for path, leaf in leaves]


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return len(shape) == len(to) and jnp.broadcast_shapes(shape, to) == to
    except ValueError:
        return False
