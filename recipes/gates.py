"""Gates that learn which weights or neurons to keep: `python -m recipes.gates --help`.

Trains weights under gates until --harden, when gates become masks that meet the budget --kept; what
is kept trains on without gates. Beside it, from the same weights and on the same batches, dense
training and gradual magnitude pruning to the same sparsity. Writes a folder that reproduces itself.

References: Louizos, Welling and Kingma, 2018 (hard concrete); Maddison et al., 2017 (binary
concrete); Bengio et al., 2013 (straight through); Savarese et al., 2020 (continuous
sparsification); Zhi et al., 2023 (consensus); Zhu and Gupta, 2017 (gradual magnitude pruning).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.structured import Structure
from jaxprune.trees import map_scored
from recipes.common import cli, flags, models, settings, study
from recipes.common.arms import Arm, Learned, Weights
from recipes.common.data import Dataset
from recipes.gmp import gradual
from recipes.reports import gates as report

LEVELS = ("neuron", "weight", "consensus")
BUDGETS = ("weights", "flops")
FAMILIES = ("hard_concrete", "binary_concrete", "bernoulli", "straight_through", "continuous")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Gates that learn which weights or neurons to keep, several seeds in one program."""

    out: Path = Path("runs/gates")
    level: Annotated[tuple[str, ...], flags.choice(LEVELS), flags.DISTINCT] = LEVELS[:2]
    """What has a gate: neurons, weights, or (consensus) neurons, by what most inputs want."""
    gate: Annotated[str, flags.choice(FAMILIES)] = "hard_concrete"
    """The family of gates; continuous is continuous sparsification."""
    kept: Annotated[tuple[float, ...], flags.within("(0, 1)"), flags.DISTINCT] = (0.1,)
    """The fractions of the budget to keep."""
    budget: Annotated[str, flags.choice(BUDGETS)] = "weights"
    """What is counted; pruned neurons save their share of both sides of a layer."""
    penalty: Annotated[
        float | None, flags.within("(0, inf)"), flags.default("a Lagrangian, that lands on --kept")
    ] = None
    """A fixed price of each weight, over the number of examples: the lambda of the L0 paper."""
    falls: Annotated[float, flags.within("(0, harden]")] = 0.4
    """When the target has fallen from 1 to --kept, as a fraction of the steps."""
    harden: Annotated[float, flags.within("(0, 1)")] = 0.7
    """When gates become masks and GMP is at its sparsity, as a fraction of the steps."""
    open: float = 2.0
    """The logits of gates at the start."""
    gate_rate: flags.Positive = 0.05
    """The learning rate of gates and multipliers."""
    every: flags.Count = 10
    """gmp: steps between updates of the masks."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if self.penalty is not None and "consensus" in self.level:
            yield "--level consensus needs a budget: --kept, without --penalty"


# --- the method -----------------------------------------------------------------------------------

GATES, MULTIPLIERS = "gates", "multipliers"  # what is learned beside the layers of the network


def gated(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    level: Level,
    plan: Plan,
    loss: Callable[..., Any] | None = None,
) -> Arm:
    """Weights under gates that learn too; at the step `plan.harden` gates become masks, and go."""
    cross_entropy = models.classification(module)

    def loss_fn(params, batch_stats, images, labels, step, key):
        gate, logits, gating = plan.gate(step), params[GATES], step <= plan.harden
        used = level.under(network_of(params), until(gating, gate.sample(key, logits)))
        error, aux = cross_entropy(used, batch_stats, images, labels)
        price = plan.price(params[MULTIPLIERS], level.kept(gate.p_open(logits)), step)
        return error + jnp.where(gating, price, 0.0), aux

    def in_tests(params, step):
        gates = plan.gate(step).deterministic(level.static(params[GATES]))
        return level.under(network_of(params), until(step <= plan.harden, gates))

    def measured(params, step):
        logits, prices = level.static(params[GATES]), params[MULTIPLIERS]
        return report.measured(plan.gate(step), plan.above, logits, level.kept, prices)

    fast = optax.adam(plan.rate, b2=0.9)  # prices change: it must forget (see jp.gates.lagrangian)
    parts = {"weights": optimizer, GATES: fast, MULTIPLIERS: fast}
    part_of = lambda params: {name: name if name in parts else "weights" for name in params}
    harden = jp.every(1, from_gates(level, plan), start=plan.harden, stop=plan.harden)
    tx = jp.sparsify(optax.partition(parts, part_of), harden)
    beside = {GATES: level.logits, MULTIPLIERS: jp.gates.multipliers()}
    learned = Learned(lambda params: params | beside, loss or loss_fn, in_tests, measured)
    return Arm(module, lambda key: tx, Weights.SPARSE, learned=learned)


def from_gates(level: Level, plan: Plan) -> jp.MaskTransform:
    """Masks of kernels from the logits among the params: all that the budget pays for."""

    def init(params: Any) -> jp.MaskState:
        return beside(jp.all_kept(jp.kernels(network_of(params))), params)

    def update(state: jp.MaskState, params: Any, **_: Any) -> jp.MaskState:
        logits = level.static(params[GATES])
        scores = jp.gates.keep_at_least(logits, 1)
        if plan.final is None:
            gates = plan.gate(jnp.asarray(plan.harden)).deterministic(logits)
            open_ = jax.tree.map(lambda g, s: (g > plan.above) | (s == jnp.inf), gates, scores)
        else:
            open_ = jp.gates.within_budget(scores, level.kept, plan.final)
        return beside(level.masks(open_), params)

    def beside(masks: Any, params: Any) -> jp.MaskState:
        learned = {k: params[k] for k in (GATES, MULTIPLIERS)}
        return jp.MaskState(masks | jax.tree.map(lambda _: None, learned))

    return jp.MaskTransform(init, update)


def until(gating: jax.Array, gates: Any) -> Any:
    """`gates` as long as there are any, then 1."""
    return jax.tree.map(lambda gate: jnp.where(gating, gate, 1.0), gates)


def network_of(params: Any) -> dict[str, Any]:
    """The params of the network, without what is learned beside them."""
    return {layer: w for layer, w in params.items() if layer not in (GATES, MULTIPLIERS)}


class Plan(NamedTuple):
    """How gates are learned."""

    gate: Callable[[jax.Array], jp.gates.Gate]  # of a step
    above: float  # which a gate is open
    target: optax.Schedule | None  # the fraction to keep; None with a fixed price
    final: float | None  # the last target
    fixed: float | None  # the price of all weights, where there is no target
    harden: int  # the step at which gates become masks
    rate: float  # of the gates and the multipliers

    def price(self, multipliers: Any, kept: jax.Array, step: jax.Array) -> jax.Array:
        """What is added to the loss."""
        if self.target is None:
            assert self.fixed is not None
            return jnp.asarray(self.fixed * kept)
        return jp.gates.lagrangian(multipliers, kept, self.target(step))


# --- what has a gate ------------------------------------------------------------------------------


class Level(NamedTuple):
    """What has a gate."""

    logits: Any  # at the start
    under: Callable[[Any, Any], Any]  # (params, gates) -> the params that the network uses
    kept: Callable[[Any], jax.Array]  # open gates, or how probably -> the fraction of the budget
    masks: Callable[[Any], Any]  # open gates -> masks of kernels
    static: Callable[[Any], Any] = lambda logits: logits  # what is learned -> logits of no image
    per_image: Callable[[Any], Any] | None = None  # gates of each image -> a method interceptor


def weights(structure: Structure, config: Config) -> Level:
    """A gate for each weight of a kernel."""
    kernels = jp.kernels(structure.shapes)["params"]
    kept = lambda p_open: jp.gates.kept_weights(p_open, kernels)
    if config.budget == "flops":
        flops = jp.count_flops(structure.fn, structure.shapes, *structure.inputs)
        kept = lambda p_open: jp.gates.kept_flops({"params": p_open}, flops, structure.shapes)
    logits = jp.gates.logits(kernels, logit=config.open)
    return Level(logits, jp.apply_masks, kept, lambda open_: jp.gates.masks(open_, kernels))


def neurons(structure: Structure, config: Config) -> Level:
    """A gate for each neuron, where it is read: before a relu a closed gate would have no slope."""
    groups, kernels = names(structure), jp.kernels(structure.shapes)["params"]
    logits = jp.structured.gate_logits(structure, config.open)
    by_group = lambda gates: {group: gates[name] for name, group in groups.items()}

    def under(params: Any, gates: Any) -> Any:
        return jp.structured.apply_gates(structure, params, by_group(gates), at_readers=True)

    def kept(p_open: Any) -> jax.Array:
        cost = lambda gates: jp.structured.relaxed_cost(structure, gates, prunable=jp.kernels)
        return getattr(cost(by_group(p_open)), config.budget) / getattr(cost({}), config.budget)

    def masks(open_: Any) -> Any:
        every = jp.structured.masks(structure, by_group(open_))["params"]
        return map_scored(lambda kernel, mask: mask, kernels, every)

    return Level(
        {name: logits[group] for name, group in groups.items()},
        under,
        kept,
        masks,
        per_image=lambda gates: jp.structured.per_example(structure, by_group(gates)),
    )


def analyzed(module: nn.Module, images: np.ndarray) -> Structure:
    """The neurons of a network, and its pixels where a dense layer reads them."""
    image = jax.ShapeDtypeStruct((1, *images.shape[1:]), np.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    if not isinstance(module, models.MLP):
        return jp.analyze(module.apply, variables, image)
    pixels = jax.ShapeDtypeStruct((1, images[0].size), np.float32)
    return jp.analyze(module.apply, variables, pixels, sliceable_inputs=[("0", 1)])


def names(structure: Structure) -> dict[str, str]:
    """Name -> group: in a checkpoint a name has no slash."""
    short = lambda group: group.removeprefix("params/").replace("/", ".")
    is_input = lambda neurons: any(member.path not in structure.axes for member in neurons.members)
    groups = structure.groups.items()
    return {"inputs" if is_input(neurons) else short(group): group for group, neurons in groups}


VOTERS = 256  # the images that vote, in tests and for the masks
STRENGTH = 1.0  # of the penalty on disagreement


def consensus(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    level: Level,
    plan: Plan,
    images: np.ndarray,
) -> Arm:
    """Gates of neurons that depend on the image, until all images agree on one network.

    A linear map of the image decides of every neuron, straight through. A penalty on disagreement
    and a budget on the mean over the batch leave one network, by the votes of the first `images`;
    then the map is dropped. The form of the penalty, and the map, are ours.
    """
    cross_entropy, voters = models.classification(module), jnp.asarray(images[:VOTERS])
    straight, per_image = jp.gates.straight_through(), level.per_image
    assert per_image is not None

    def decisions(maps, images):  # {name: (images, neurons)}
        x = images.reshape(len(images), -1)
        logits = {name: x @ m["kernel"] + m["bias"][None] for name, m in maps.items()}
        return straight.sample(None, logits)

    def votes(maps):  # of each neuron, how much more than half of the images want it open
        return jax.tree.map(lambda m: m - 0.5, jp.gates.consensus(decisions(maps, voters)))

    def loss_fn(params, batch_stats, images, labels, step, key):
        gates, gating = decisions(params[GATES], images), step <= plan.harden
        price = STRENGTH * jp.gates.disagreement(gates)
        price += plan.price(params[MULTIPLIERS], level.kept(jp.gates.consensus(gates)), step)
        with nn.intercept_methods(per_image(until(gating, gates))):
            error, aux = cross_entropy(network_of(params), batch_stats, images, labels)
        return error + jnp.where(gating, price, 0.0), aux

    zeros = lambda s: jnp.zeros((images[0].size, s.size))
    maps = {name: {"kernel": zeros(s), "bias": s} for name, s in level.logits.items()}
    most = straight._replace(p_open=lambda votes: jax.tree.map(lambda v: v + 0.5, votes))
    by_votes = plan._replace(gate=lambda step: most, above=0.5)
    return gated(module, optimizer, level._replace(logits=maps, static=votes), by_votes, loss_fn)


# --- the arms -------------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """Dense training; for each budget gates of each level, and GMP."""
    module = settings.module_of(config, dataset.classes)
    dense, images = settings.optimizer(config, steps), dataset.train.images
    structure = analyzed(module, images)
    of_neurons, of_weights = neurons(structure, config), weights(structure, config)
    made = {"dense": Arm(module, dense)}
    for kept in config.kept if config.penalty is None else (None,):
        plan = plan_of(config, kept, steps, structure, len(images))
        arm_of = {
            "neuron": partial(gated, module, dense, of_neurons, plan),
            "weight": partial(gated, module, dense, of_weights, plan),
            "consensus": partial(consensus, module, dense, of_neurons, plan, images),
        }
        made |= {report.name(level, kept, config): arm_of[level]() for level in config.level}
        if kept is not None:
            gmp = gradual(dense, steps, 1 - kept, config.every, 0.1, config.harden)
            made[report.name("gmp", kept, config)] = Arm(module, gmp, Weights.SPARSE)
    return made


def plan_of(
    config: Config, kept: float | None, steps: int, structure: Structure, examples: int
) -> Plan:
    """How gates are learned."""
    harden = hardened_at(config, steps)
    slope = optax.exponential_decay(1.0, harden, 200.0)
    families = {
        "hard_concrete": (lambda step: jp.gates.hard_concrete(), 0.0),
        "binary_concrete": (lambda step: jp.gates.binary_concrete(2 / 3), 0.5),
        "bernoulli": (lambda step: jp.gates.bernoulli(), 0.5),
        "straight_through": (lambda step: jp.gates.straight_through(), 0.5),
        # plain sigmoids: gates harden to masks, which are 1 where open
        "continuous": (lambda step: jp.gates.continuous_sparsification(slope(step), math.inf), 0.5),
    }
    target = None if kept is None else falling(config, kept, steps)
    n_weights = sum(w.size for w in jax.tree.leaves(jp.kernels(structure.shapes["params"])))
    fixed = None if config.penalty is None else config.penalty / examples * n_weights
    return Plan(*families[config.gate], target, kept, fixed, harden, config.gate_rate)


def falling(config: Config, kept: float, steps: int) -> optax.Schedule:
    """The target: from 1 to the fraction to keep."""
    falls = min(max(round(config.falls * steps), 1), hardened_at(config, steps))
    return optax.polynomial_schedule(1.0, kept, power=3, transition_steps=falls)


def hardened_at(config: Config, steps: int) -> int:
    """The step at which gates become masks: one that is logged."""
    often = config.log_every or settings.LOG_EVERY[config.model]
    return max(round(config.harden * steps / often) * often, min(often, steps - 1))


# --- the command ----------------------------------------------------------------------------------


def learn_gates(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config))
    steps = outcome.history[-1]["step"]
    kept = config.kept if config.penalty is None else ()
    targets = [falling(config, fraction, steps) for fraction in kept]
    return report.write(config, outcome, hardened_at(config, steps), targets)


main = cli.command(Config, learn_gates)

if __name__ == "__main__":
    main()
