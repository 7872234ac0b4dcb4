"""Lineages that are pruned and retrained phase by phase: soups of children, and single networks.

A lineage is a stack of networks, one a seed, that goes from phase to phase. Children of all seeds
are lanes of one program, beside those of lineages that retrain as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.masks import all_kept
from recipes.common import phases, training
from recipes.common.journal import At, Journal
from recipes.common.phases import Lane, Phases
from recipes.common.training import TrainState

VARIATIONS = ("order", "weight_decay", "length", "learning_rate")
LEAST, MOST = 0.5, 1.5  # what children multiply it by, evenly spaced

Variables = dict[str, Any]  # {"params", "batch_stats"}: a stack


class Networks(NamedTuple):
    """A lineage: every array has a seed axis."""

    variables: Variables
    masks: Any


class Retraining(NamedTuple):
    """What all retrainings have in common."""

    keys: jax.Array  # of the seeds (seeds,)
    peak: float  # the learning rate
    weight_decay: float
    steps: int  # of a retraining
    table: int  # entries of a table of rates, for all programs alike


def initial(module: nn.Module, keys: jax.Array, image: np.ndarray) -> Networks:
    """Untrained networks (seeds,) with the weights of all recipes, under masks that keep all."""
    made = training.init_variables(module, keys, jnp.asarray(image))
    masks = all_kept(jp.kernels(made["params"]))
    return Networks({"params": made["params"], "batch_stats": made.get("batch_stats", {})}, masks)


def lane(table: jax.Array, weight_decay: float, lanes: int) -> Lane:
    """Lanes that train alike."""
    return Lane(jnp.tile(table, (lanes, 1)), jnp.full(lanes, weight_decay, jnp.float32))


def factors(children: int) -> np.ndarray:
    """What each child multiplies by (children,)."""
    return np.linspace(LEAST, MOST, children)


def variations(r: Retraining, vary: str, children: int) -> tuple[Lane, int]:
    """Lanes of the children of one seed, and the steps of the longest."""
    own = np.ones(children) if vary == "order" else factors(children)
    plain = np.ones(children)
    decays = r.weight_decay * (own if vary == "weight_decay" else plain)
    peaks = r.peak * (own if vary == "learning_rate" else plain)
    lengths = np.maximum(np.rint(r.steps * (own if vary == "length" else plain)), 1).astype(int)
    tables = [
        phases.rates(jp.llr(peak, int(length)), int(length), r.table)
        for peak, length in zip(peaks, lengths, strict=True)
    ]
    return Lane(jnp.stack(tables), jnp.asarray(decays, jnp.float32)), int(lengths.max())


def order_keys(r: Retraining, vary: str, phase: int, children: int) -> jax.Array:
    """Keys of the order of the data (seeds, children): one a seed, unless it is what varies."""
    child = jnp.arange(children) * (vary == "order")
    of_phase = jax.vmap(lambda key: jax.random.fold_in(key, 3 + phase))(r.keys)
    return jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(child))(of_phase)


@jax.jit
def prune(networks: Networks, sparsity: Any) -> Networks:
    """The same weights under masks of that sparsity: the largest that were left, of all layers."""

    @jax.vmap
    def masks_of(params: Any, masks: Any) -> Any:
        magnitude = jp.prune(jp.magnitude, jp.global_threshold, lambda step: sparsity)
        return magnitude.update(jp.MaskState(masks), params, step=0).masks

    masks = masks_of(networks.variables["params"], networks.masks)
    params = jp.apply_masks(networks.variables["params"], masks)
    return Networks({**networks.variables, "params": params}, masks)


def retrain(
    p: Phases,
    networks: Networks,
    lanes: Lane,
    keys: jax.Array,
    steps: int,
    name: str,
    journal: Journal,
) -> Variables:
    """Trained variables; every array, `lanes` and `keys` have the same axis of lanes."""
    variables = networks.variables
    state = phases.begin(p, variables["params"], variables["batch_stats"], networks.masks, lanes)

    def train(state: TrainState, start: int, at: At) -> TrainState:
        return phases.advance(p, state, lanes, keys, steps, at, start)

    state = journal.once(name, steps, state, train, f"{len(keys)} networks")
    return {"params": state.params, "batch_stats": state.batch_stats}


def repeated(tree: Any, children: int) -> Any:
    """(seeds, ...) as (seeds * children, ...), the children of a seed next to each other."""
    return jax.tree.map(lambda x: jnp.repeat(x, children, axis=0), tree)


def joined(*stacks: Any) -> Any:
    """Stacks one after the other, as one."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), *stacks)


def parted(stack: Any, at: int) -> tuple[Any, Any]:
    """The first so many of a stack, and the rest."""
    return jax.tree.map(lambda x: x[:at], stack), jax.tree.map(lambda x: x[at:], stack)


def families(stack: Any, children: int) -> Any:
    """(seeds * children, ...) as (seeds, children, ...)."""
    return jax.tree.map(lambda x: x.reshape(-1, children, *x.shape[1:]), stack)


def parts(variables: Variables) -> tuple[Any, Any]:
    """(params, batch_stats)."""
    return variables["params"], variables["batch_stats"]


class Ensemble(NamedTuple):
    """Several networks as one: the mean of what they hold probable. Variables are a stack."""

    module: nn.Module

    def apply(self, variables: Any, images: jax.Array) -> jax.Array:
        """Probabilities (n, classes)."""

        def one(own: Any) -> jax.Array:
            logits: Any = self.module.apply(own, images)
            return jax.nn.softmax(logits)

        return jax.vmap(one)(variables).mean(0)


Tested = Callable[[Any, Any], np.ndarray]


def ensemble_accuracy(module: nn.Module, split: Any) -> Tested:
    """A function (params, batch_stats), of (seeds, children), -> accuracy of ensembles (seeds,)."""
    together: Any = Ensemble(module)
    return training.make_evaluate(together, split)
