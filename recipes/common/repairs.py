"""What repairs pruned networks: an optimizer of a part of each, under its masks.

Reference: Zimmer et al., 2023, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import jaxprune as jp
from jaxprune.trees import map_named
from recipes.common import lanes
from recipes.common.journal import Journal
from recipes.common.lanes import Network

REPAIRS = ("norms", "lora", "masked_lora", "scaled_lora", "retrain")


class Repair(NamedTuple):
    """How pruned networks are trained, and what becomes of them."""

    program: lanes.Program
    pair: jp.reparam.Reparameterization  # params -> what learns -> params


def repair(
    name: str,
    of: lanes.Program,
    optimizer: optax.GradientTransformation,
    loss: lanes.Loss,
    key: jax.Array,
    rank: int,
) -> Repair:
    """A repair by name; the data are those of the program `of`.

    norms trains the scales of the norms. The adapters (of some rank) train beside them, and the
    kernels do not move. retrain trains all weights that are left.
    """
    pairs = {
        "lora": lambda: jp.reparam.lora(key, rank, 2.0 * rank),
        "masked_lora": lambda: jp.reparam.masked_lora(key, rank, 2.0 * rank),
        "scaled_lora": lambda: jp.reparam.scaled_lora(rank),
    }
    same = jp.reparam.Reparameterization(lambda params: params, lambda learned: learned)
    pair = pairs[name]() if name in pairs else same

    def label(path: str, w: Any) -> str:
        learns = name == "retrain" or path.endswith("/scale")
        return "trained" if learns or path.startswith(("down/", "up/")) else "fixed"

    parts = {"trained": optimizer, "fixed": optax.set_to_zero()}
    inner = optax.partition(parts, lambda learned: map_named(label, learned))

    def of_pair(learned: Any, *rest: Any) -> Any:
        return loss(pair.apply(learned), *rest)

    sparse = jp.sparsify(inner, jp.fixed(lambda learned: masks_of(learned, None)))
    program = lanes.program(
        of.module, lambda lane: sparse, of.data, of.batch_size, of.chunk_steps, of_pair
    )
    return Repair(program, pair)


def masks_of(learned: Any, masks: Any) -> Any:
    """Masks of what learns, of one network or a stack: of its weights, and of no adapter."""
    if not isinstance(learned, jp.reparam.Adapters):
        return lanes.keep_all(learned) if masks is None else masks
    none = lambda tree: jax.tree.map(lambda _: None, tree)
    of_weights = lanes.keep_all(learned.weights) if masks is None else masks
    return jp.reparam.Adapters(of_weights, none(learned.down), none(learned.up))


def repaired(
    log: Journal, name: str, how: Repair, params: Any, lane: lanes.Lane, steps: int
) -> Any:
    """A stack of pruned params after a repair: what is zero in a kernel stays zero."""
    masks = jax.tree.map(lambda w: w != 0, jax.vmap(lambda p: jp.kernels(p))(params))
    learned = jax.vmap(how.pair.init)(params)
    network = Network(learned, {}, masks_of(learned, masks))
    end: Callable[[Any], Any] = jax.vmap(how.pair.apply)
    after = end(lanes.trained(log, name, how.program, network, lane, steps).params)
    return jp.apply_masks(after, masks)
