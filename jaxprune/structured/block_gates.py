"""Gates of whole blocks: how much of a block is added to the stream around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.coupling.last_layers import last_layers
from jaxprune.coupling.structure import Structure
from jaxprune.structured.check import check_all
from jaxprune.structured.removal import weights_of
from jaxprune.trees import map_named


def apply_block_gates(structure: Structure, params: Params, gates: Mapping[str, Any]) -> Params:
    """`params` with the gate of each block folded into the last layers of its branches.

        x + attention(x)   is   x + gate attention(x)

    A gate of 1 changes nothing. With a gate of 0 the network computes what `remove_blocks` leaves.
    A block of several branches has the gate on each of them.

        kept = gates.n_of_m(2, 4).sample(key, logits).ravel()
        params = apply_block_gates(structure, params, dict(zip(blocks, kept)))

    Args:
      structure: of `analyze`.
      params: all the params that were analyzed.
      gates: a scalar for each block, by the names that `removable_blocks` takes; of a block that is
        not named it is 1.

    Raises:
      ValueError: for a block that is not there or can't go, a gate that is no scalar, and params
        that do not fit.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'block': {'up': jnp.ones((2, 3)), 'down': jnp.ones((3, 2))}}
    >>> fn = lambda p, x: x + x @ p['block']['up'] @ p['block']['down']
    >>> structure = jp.analyze(fn, params, jnp.ones((1, 2)))
    >>> apply_block_gates(structure, params, {'block': 0.5})['block']['down'][0]
    Array([0.5, 0.5], dtype=float32)

    Reference: Fang et al., 2025, TinyFusion: Diffusion Transformers Learned Shallow.
    """
    prefix = check_all("apply_block_gates", structure, params)
    if wrong := [block for block, gate in gates.items() if jnp.shape(gate) != ()]:
        raise ValueError(
            f"apply_block_gates: the gate of block '{wrong[0]}' is a scalar; got shape "
            f"{jnp.shape(gates[wrong[0]])}. With an axis of seeds in front, use vmap."
        )
    of_leaf: dict[str, Any] = {}
    blocks = weights_of(structure, list(gates))
    for block, last in last_layers(structure.program, structure.axes, blocks).items():
        if last is None:
            raise ValueError(
                f"apply_block_gates: without block '{block}' an output depends on no input, for "
                "there is no path around it. removable_blocks(structure, blocks) says which can go."
            )
        for path in (prefix + path for path in last):
            of_leaf[path] = of_leaf[path] * gates[block] if path in of_leaf else gates[block]

    def gated(path: str, w: jax.Array) -> jax.Array:
        return w * jnp.asarray(of_leaf[path]).astype(w.dtype) if path in of_leaf else w

    return map_named(gated, params)
