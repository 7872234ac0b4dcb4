"""What repairs pruned networks: a part of each changes, under its masks.

Reference: Zimmer et al., 2023, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxprune as jp
from jaxprune.trees import map_named
from recipes.common import lanes
from recipes.common.journal import Journal
from recipes.common.lanes import Network
from recipes.common.one_by_one import one_by_one

REPAIRS = ("reconstruct", "norms", "lora", "masked_lora", "scaled_lora", "retrain")


class Repaired(NamedTuple):
    """A stack of networks after a repair: what was zero in a kernel is zero."""

    params: Any  # (networks, ...)
    weights: int  # that changed or trained, of one network


Repair = Callable[[Journal, str, Any, Any], Repaired]
"""`(journal, name, pruned params, dense params) -> Repaired`, of stacks of networks."""


class Repairs(NamedTuple):
    """What repairs work with."""

    program: lanes.Program  # whose data train
    forward: Callable[..., Any]  # (params, inputs) -> outputs
    batches: Callable[[int], list[Any]]  # what network i is reconstructed on
    optimizer: optax.GradientTransformation
    loss: lanes.Loss
    steps: int
    rank: int  # of adapters
    seed: int
    key: jax.Array  # the first adapters


def repair(name: str, of: Repairs) -> Repair:
    """A repair by name.

    reconstruct fits each product to its outputs in the dense network. norms trains the scales of
    the norms. The adapters train beside them, and the kernels do not move. retrain trains all
    weights that are left.
    """
    return reconstruction(of) if name == "reconstruct" else training(name, of)


def masks_of(params: Any) -> Any:
    """What is not zero in the kernels of a stack."""
    return jax.tree.map(lambda w: w != 0, jax.vmap(lambda p: jp.kernels(p))(params))


def reconstruction(of: Repairs) -> Repair:
    """`calibration.reconstruct`, one network after the other."""

    def run(log: Journal, name: str, params: Any, dense: Any) -> Repaired:
        masks = masks_of(params)

        def tune(i: int, one: Any) -> Any:
            before, mask = (lanes.lane_of(stack, i) for stack in (dense, masks))
            return jp.calibration.reconstruct(of.forward, before, one, mask, of.batches(i))

        kept = sum(int(x.sum()) for x in jax.tree.leaves(lanes.lane_of(masks, 0)))
        return Repaired(one_by_one(log, name, params, tune, "reconstruct").params, kept)

    return run


def training(name: str, of: Repairs) -> Repair:
    """An optimizer of a part of each network, under its masks."""
    pairs = {
        "lora": lambda: jp.reparam.lora(of.key, of.rank, 2.0 * of.rank),
        "masked_lora": lambda: jp.reparam.masked_lora(of.key, of.rank, 2.0 * of.rank),
        "scaled_lora": lambda: jp.reparam.scaled_lora(of.rank),
    }
    same = jp.reparam.Reparameterization(lambda params: params, lambda learned: learned)
    pair = pairs[name]() if name in pairs else same

    def label(path: str, w: Any) -> str:
        learns = name == "retrain" or path.endswith("/scale")
        return "trained" if learns or path.startswith(("down/", "up/")) else "fixed"

    parts = {"trained": of.optimizer, "fixed": optax.set_to_zero()}
    inner = optax.partition(parts, lambda learned: map_named(label, learned))

    def of_pair(learned: Any, *rest: Any) -> Any:
        return of.loss(pair.apply(learned), *rest)

    sparse = jp.sparsify(inner, jp.fixed(lambda learned: masks_of_learned(learned, None)))
    p = of.program
    program = lanes.program(
        p.module, lambda lane: sparse, p.data, p.batch_size, p.chunk_steps, of_pair
    )

    def run(log: Journal, name: str, params: Any, dense: Any) -> Repaired:
        masks = masks_of(params)
        learned = jax.vmap(pair.init)(params)
        lane = lanes.Lane(lanes.seed_keys(of.seed, len(jax.tree.leaves(params)[0])))
        network = Network(learned, {}, masks_of_learned(learned, masks))
        end: Callable[[Any], Any] = jax.vmap(pair.apply)
        after = end(lanes.trained(log, name, program, network, lane, of.steps).params)
        first = lanes.lane_of(network, 0)
        learns = jax.tree.leaves(map_named(label, first.params))
        counts = jax.tree.leaves(jax.tree.map(_left, first.params, first.masks))
        weights = sum(n for n, how in zip(counts, learns, strict=True) if how == "trained")
        return Repaired(jp.apply_masks(after, masks), weights)

    return run


def _left(w: Any, mask: Any) -> int:
    """The number of weights that a mask leaves."""
    return int(w.size if mask is None else np.sum(mask))


def masks_of_learned(learned: Any, masks: Any) -> Any:
    """Masks of what learns, of one network or a stack: of its weights, and of no adapter."""
    if not isinstance(learned, jp.reparam.Adapters):
        return lanes.keep_all(learned) if masks is None else masks
    none = lambda tree: jax.tree.map(lambda _: None, tree)
    of_weights = lanes.keep_all(learned.weights) if masks is None else masks
    return jp.reparam.Adapters(of_weights, none(learned.down), none(learned.up))
