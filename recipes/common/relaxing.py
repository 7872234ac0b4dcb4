"""Networks under gates of their neurons, trained and cut stage by stage.

Lanes are the seeds of all arms. What differs between lanes and between stages is data: rates,
strengths, budgets, and the neurons that are left, so that one compiled program trains them all, and
computes for each what a smaller network would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.coupling.structure import Structure
from jaxprune.structured.kept import Removal
from recipes.common import cutting, lanes, training
from recipes.common.data import Split
from recipes.common.training import Chunk

SLOPE = 5.0  # of the sigmoids
BINS = 20  # of the histogram of gates
NETWORK, GATES = "network", "gates"  # the two parts of what is learned


class Stage(NamedTuple):
    """A stage: what is under the threshold is cut, then what is left is trained.

    `threshold` is None where nothing is cut; `gating` says whether gates multiply and learn, else
    they have been folded into the weights.
    """

    name: str
    steps: int
    threshold: float | None
    pull: float  # what the relative cost is multiplied by
    ejection: float  # and the ejector, once it is on
    gating: bool = True


class Study(NamedTuple):
    """What all stages share."""

    network: Mapping[str, Any]  # what `models.model` was called with
    module: nn.Module
    structure: Structure
    flops: int  # of the dense network
    held: tuple[str, ...]  # groups that are never emptied
    optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
    schedule: Callable[[int], optax.Schedule]  # the rates of a stage of so many steps
    weight_decay: float  # of weights, never of gates
    gate_rate: float
    rho: float
    train: Split  # on the device
    batch_size: int
    chunk_steps: int
    keys: jax.Array  # (seeds,)
    arms: Mapping[str, float | None]  # name -> budget of FLOPs, 0 for none; None: dense
    stages: Sequence[Stage]


class Lane(NamedTuple):
    """How a network trains in a stage. With a lane axis in front of every array, a stack."""

    rates: jax.Array  # of the weights, at every step (steps,)
    pull: jax.Array  # ()
    ejection: jax.Array  # (steps,)
    target: jax.Array  # the relative cost to pull to ()
    gating: jax.Array  # bool ()
    kept: tuple[jax.Array, ...]  # bool (size,) by group, in their order
    masks: Any  # bool, like the variables


class State(NamedTuple):
    """What changes in a step. With a lane axis in front of every array, a stack."""

    params: dict[str, Any]  # of the network, and logits in the order of the groups
    batch_stats: Any
    opt_state: optax.OptState
    step: jax.Array  # of the stage


def named(s: Study, own: Sequence[Any]) -> dict[str, Any]:
    """By group, what comes in their order: names with slashes are none in checkpoints."""
    return dict(zip(s.structure.groups, own, strict=True))


def first(s: Study) -> tuple[dict[str, Any], Any]:
    """(params, batch_stats) of all lanes: every arm begins with the weights of all recipes."""
    image = jnp.asarray(s.train.images[:1])
    variables = training.init_variables(s.module, s.keys, image)
    tiled = lambda x: jnp.tile(x, (len(s.arms), *(1,) * (x.ndim - 1)))
    logits = tuple(jp.group_logits(s.structure).values())
    lanes = len(s.arms) * len(s.keys)
    learned = {
        NETWORK: jax.tree.map(tiled, variables["params"]),
        GATES: jax.tree.map(lambda x: jnp.tile(x, (lanes, 1)), logits),
    }
    return learned, jax.tree.map(tiled, variables.get("batch_stats", {}))


def begin(s: Study, params: Any, batch_stats: Any, lanes: Lane) -> State:
    """Fresh optimizers at these params."""
    opt_state = jax.vmap(lambda lane, params: optimizer_of(s, lane).init(params))(lanes, params)
    step = jnp.zeros(len(s.arms) * len(s.keys), jnp.int32)
    # copied, since a state is donated whole: no two of its leaves may share memory
    return jax.tree.map(jnp.copy, State(params, batch_stats, opt_state, step))


def gates_of(s: Study, logits: Sequence[jax.Array], lane: Lane) -> dict[str, jax.Array]:
    """The gates of one network: 0 where a neuron was cut, 1 where there are none any more."""
    kept = {name: own.astype(jnp.float32) for name, own in named(s, lane.kept).items()}
    soft = jp.continuous_sparsification(SLOPE, math.inf).deterministic(named(s, logits))
    soft = jp.prevent_collapse({name: soft[name] * kept[name] for name in kept}, only=s.held)
    return {name: jnp.where(lane.gating, soft[name], kept[name]) for name in kept}


def under_gates(s: Study, params: Any, batch_stats: Any, lane: Lane) -> Any:
    """The variables of one network with its gates folded in, zero where neurons were cut."""
    variables = {"params": params[NETWORK]} | ({"batch_stats": batch_stats} if batch_stats else {})
    folded = jp.apply_gates(s.structure, variables, gates_of(s, params[GATES], lane))
    return jp.apply_masks(folded, lane.masks)


def relative_cost(s: Study, params: Any, lane: Lane) -> jax.Array:
    """The relaxed FLOPs of one network, over those of the dense one."""
    relaxed = jp.relaxed_cost(s.structure, gates_of(s, params[GATES], lane))
    return jnp.asarray(relaxed.flops / s.flops)


def make_chunk(s: Study) -> Chunk:
    """A jitted function that runs as many steps as `order` has; the state it is given is donated.

    loss = cross-entropy + pull |relative cost - target| + ejection(step) ejector
    """
    cross_entropy = training.classification(s.module)

    def loss_fn(params, batch_stats, images, labels, step, lane):
        own = under_gates(s, params, batch_stats, lane)
        loss, aux = cross_entropy(own["params"], own.get("batch_stats", {}), images, labels)
        above = jnp.abs(relative_cost(s, params, lane) - lane.target)
        undecided = jp.ejector(params[GATES], s.rho, lane.kept)
        return loss + lane.pull * above + lane.ejection[step] * undecided, aux

    def step(state, images, labels, lane):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        now = state.batch_stats, images, labels, state.step, lane
        (loss, (accuracy, batch_stats)), grads = gradient(state.params, *now)
        updates, opt_state = optimizer_of(s, lane).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = State(params, batch_stats, opt_state, state.step + 1)
        return new, {"loss": loss, "accuracy": accuracy}

    return training.chunk_of(step)


def make_measure(s: Study) -> Callable[[Any, Lane], dict[str, jax.Array]]:
    """A jitted function (params, lanes) -> numbers of each: relative cost, histogram of gates."""

    def one(params, lane):
        gates, kept = gates_of(s, params[GATES], lane), named(s, lane.kept)
        values = jnp.concatenate([gates[name] for name in kept])
        left = jnp.concatenate(list(kept.values())).astype(jnp.float32)
        counts = jnp.histogram(values, bins=BINS, range=(0.0, 1.0), weights=left)[0]
        return {"relaxed": relative_cost(s, params, lane), "histogram": counts / left.sum()}

    return jax.jit(jax.vmap(one))


def make_network(s: Study) -> Callable[[Any, Any, Lane], Any]:
    """A jitted function (params, batch_stats, lanes) -> variables under gates, of a stack."""
    return jax.jit(jax.vmap(partial(under_gates, s)))


def make_gates(s: Study) -> Callable[[Any, Lane], tuple[jax.Array, ...]]:
    """A jitted function (params, lanes) -> gates (lanes, size), in the order of the groups.

    A dict would come back in the order of its names.
    """
    one = lambda params, lane: tuple(gates_of(s, params[GATES], lane).values())
    return jax.jit(jax.vmap(one))


def cut(
    s: Study, gates: Mapping[str, Any], before: Sequence[Removal], stage: Stage
) -> list[Removal]:
    """What is left of each lane in this stage, by the gates {group: (lanes, size)} of the last."""
    found = []
    for i, (own, budget) in enumerate(zip(before, budgets(s), strict=True)):
        if stage.threshold is None or budget is None:
            found.append(own)
            continue
        values = {name: np.asarray(gate[i]) for name, gate in gates.items()}
        exact = stage is s.stages[-1] and budget > 0
        found.append(cutting.cut(s.structure, values, own, stage.threshold, budget, exact, s.held))
    return found


def lanes_of(s: Study, stage: Stage, left: Sequence[Removal]) -> Lane:
    """How all networks train in this stage."""
    length = max(own.steps for own in s.stages)
    ramp = jp.cubic_ramp(0.48 * stage.steps, 0.5 * stage.steps)  # a switch, half-way
    ejection = stage.ejection * jax.vmap(ramp)(jnp.arange(length))
    rates = lanes.table(s.schedule(stage.steps), stage.steps, length)

    def lane(budget: float | None, own: Removal) -> Lane:
        relaxed, masks = budget is not None, jp.group_masks(s.structure, own)
        return Lane(
            rates=rates,
            pull=jnp.float32(stage.pull * relaxed),
            ejection=ejection * relaxed,
            target=jnp.float32(budget or 0.0),
            gating=jnp.asarray(stage.gating and relaxed),
            kept=tuple(jnp.asarray(own.kept[name]) for name in s.structure.groups),
            masks=jax.tree.map(
                lambda x, m: jnp.ones(x.shape, bool) if m is None else m, s.structure.shapes, masks
            ),
        )

    return _stacked(lane(*pair) for pair in zip(budgets(s), left, strict=True))


def budgets(s: Study) -> list[float | None]:
    """Of each lane."""
    return [budget for budget in s.arms.values() for _ in range(len(s.keys))]


def _stacked(lanes: Iterable[Lane]) -> Lane:
    return jax.tree.map(lambda *x: jnp.stack(x), *lanes)


def optimizer_of(s: Study, lane: Lane) -> optax.GradientTransformation:
    """Weights by the schedule, with weight decay; gates at their own rate, and without."""
    rate = lambda count: lane.rates.at[count].get(mode="fill", fill_value=0.0)
    weights = optax.chain(optax.add_decayed_weights(s.weight_decay), s.optimizer(rate))
    of_part = {NETWORK: weights, GATES: optax.adam(s.gate_rate)}
    return optax.partition(of_part, {NETWORK: NETWORK, GATES: GATES})
