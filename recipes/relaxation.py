"""Continuous relaxation of the widths of a network: `python -m recipes.relaxation --help`.

Every neuron has a gate, folded into the norm (or kernel) of the layers that make it. Gates and
weights learn together, against accuracy, relative FLOPs, and a term that drives gates away from
1/2. In stages with a rising threshold neurons of low gates are cut; at the end the gates are
folded, and the small network trains on. Beside it, from the same weights and on the same batches,
dense networks train as long. The table shows weights, FLOPs, measured latency and accuracy before
and after. Writes a folder that reproduces itself.

Reference: Larson, Upadhyaya, McDermott and Ganju, 2023, A Generalization of Continuous Relaxation
in Structured Pruning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.structured import Removal, Structure
from recipes.common import cli, data, flags, lanes, measures, models, settings, small
from recipes.common.folder import RecipeError
from recipes.common.journal import At, Journal, journal
from recipes.common.lanes import Network, State
from recipes.reports import relaxation as report
from recipes.reports.relaxation import DENSE, Outcome, Stage, Watch

FINAL = 1.6  # how long the last stage is, in those before
SLOPE = 5.0  # of the sigmoids
BINS = 20  # of the histogram of gates
NETWORK, GATES = "network", "gates"  # the two parts of what is learned


@dataclass(frozen=True)
class Config(settings.Settings):
    """Continuous relaxation of widths, several seeds and budgets in one program."""

    out: Path = Path("runs/relaxation")
    norm: Annotated[str, flags.choice(models.NORMS)] = "batch"
    """Normalization of the convolutional networks; group ties channels of its groups together."""
    seeds: settings.Seeds = 3
    """The number of networks to train of each kind, each with other initial weights."""
    flops: Annotated[tuple[float, ...], flags.within("[0, 1)"), flags.DISTINCT] = (0.5, 0.25)
    """The target shares of the dense FLOPs: the relative cost is pulled to them, and nothing is cut
    below them. With 0 the thresholds alone decide, as published."""
    thresholds: Annotated[tuple[float, ...], flags.within("(0, 1)")] = (0.02, 0.05, 0.1, 0.2)
    """Neurons with gates below these are cut, one threshold a stage, after two stages without."""
    final_threshold: Annotated[float, flags.within("(0, 1)")] = 0.25
    """The threshold of the last stage, which has no gates and is at least 1.6 times as long."""
    pull: flags.NotNegative = 0.5
    """The factor of the distance of the relative FLOPs from their target."""
    ejection: flags.NotNegative = 1.0
    """The factor of the term against undecided gates, in the second half of a stage."""
    rho: flags.Positive = 1.0
    """How far from undecided that term reaches: in logits, sqrt(2) rho^2."""
    gate_rate: flags.Positive = 0.02
    """The learning rate of gates."""
    weight_decay: flags.NotNegative = 1e-4
    """This times the weights is added to the gradient; gates have no decay."""
    collapse: bool = False
    """Residual branches may lose all their neurons, and are removed; else each layer keeps one."""
    timings: Annotated[int, flags.at_least(0)] = 9
    """How often each forward pass is timed; 0 for never."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        rising = [*self.thresholds, self.final_threshold]
        if not self.thresholds or rising != sorted(rising):
            seen = " ".join(f"{threshold:g}" for threshold in rising)
            yield f"--thresholds must rise up to --final-threshold; got {seen}"
        if self.collapse and self.model != "resnet20":
            yield "--collapse needs a model with residual branches: --model resnet20"


def relax(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    study = study_of(config, dataset)
    with journal(config) as kept:
        stage = partial(one_stage, study, kept, Watch(study, kept, config.evaluations))
        settled = lanes.phases(kept, len(study.stages), untrained(study), stage)
    left = removals(study, settled)
    last = lane_of(study, study.stages[-1], left)
    variables = study.variables(settled.params, settled.batch_stats, last)
    return report.write(Outcome(config, study, variables, left, kept.records, dataset))


# --- the method -----------------------------------------------------------------------------------


class Neurons(NamedTuple):
    """The neurons that have gates."""

    structure: Structure
    flops: int  # of the dense network
    held: tuple[str, ...]  # groups that are never emptied


class Lane(NamedTuple):
    """How a stack of networks trains in a stage."""

    order: jax.Array  # keys (lanes,)
    rates: jax.Array  # of the weights, at every step (lanes, steps)
    decay: jax.Array  # of the weights (lanes,)
    pull: jax.Array  # what the relative cost is multiplied by (lanes,)
    ejection: jax.Array  # and the ejector, at every step (lanes, steps)
    target: jax.Array  # the relative cost to pull to (lanes,)
    gating: jax.Array  # whether there are gates, bool (lanes,)
    kept: tuple[jax.Array, ...]  # neurons, bool (lanes, size) by group, in their order
    masks: Any  # of the neurons that are kept, bool, like the variables


def gates_of(neurons: Neurons, logits: Sequence[jax.Array], lane: Lane) -> dict[str, jax.Array]:
    """The gates of one network: 0 where a neuron was cut, 1 where there are none any more."""
    kept = {
        name: mask.astype(jnp.float32)
        for name, mask in small.by_group(neurons.structure, lane.kept).items()
    }
    soft = jp.gates.continuous_sparsification(SLOPE, math.inf).deterministic(
        small.by_group(neurons.structure, logits)
    )
    soft = jp.gates.keep_strongest(
        {name: soft[name] * kept[name] for name in kept}, only=neurons.held
    )
    return {name: jnp.where(lane.gating, soft[name], kept[name]) for name in kept}


def under_gates(neurons: Neurons, params: Any, batch_stats: Any, lane: Lane) -> dict[str, Any]:
    """The variables of one network with its gates folded in, zero where neurons were cut."""
    variables = Network(params[NETWORK], batch_stats, None).variables
    gates = gates_of(neurons, params[GATES], lane)
    folded = jp.structured.apply_gates(neurons.structure, variables, gates)
    return jp.apply_masks(folded, lane.masks)


def relative_cost(neurons: Neurons, params: Any, lane: Lane) -> jax.Array:
    """The relaxed FLOPs of one network, over those of the dense one."""
    gates = gates_of(neurons, params[GATES], lane)
    return jnp.asarray(jp.structured.relaxed_cost(neurons.structure, gates).flops / neurons.flops)


def loss_of(neurons: Neurons, module: Any, rho: float) -> lanes.Loss:
    """cross-entropy + pull |relative cost - target| + ejection(step) ejector, of one network."""
    cross_entropy = models.classification(module)

    def loss_fn(params, state, images, labels, lane):
        used = under_gates(neurons, params, state.batch_stats, lane)
        loss, aux = cross_entropy(used["params"], used.get("batch_stats", {}), images, labels)
        above = jnp.abs(relative_cost(neurons, params, lane) - lane.target)
        undecided = jp.gates.ejector(params[GATES], rho, lane.kept)
        step = optax.tree.get(state.opt_state.inner_states[GATES], "count")  # that of their Adam
        return loss + lane.pull * above + lane.ejection[step] * undecided, aux

    return loss_fn


def optimizer_of(config: Config) -> Callable[[Any], optax.GradientTransformation]:
    """Weights by the rates and the weight decay of a lane; gates at a fixed rate, without decay."""

    def of_lane(lane: Any) -> optax.GradientTransformation:
        weights = lanes.by_rates(settings.OPTIMIZERS[config.optimizer], lane)
        parts = {NETWORK: weights, GATES: optax.adam(config.gate_rate)}
        return optax.partition(parts, {NETWORK: NETWORK, GATES: GATES})

    return of_lane


def measured(neurons: Neurons, params: Any, lane: Lane) -> dict[str, jax.Array]:
    """Numbers of one network: relative cost, histogram of gates."""
    gates, kept = (
        gates_of(neurons, params[GATES], lane),
        small.by_group(neurons.structure, lane.kept),
    )
    values = jnp.concatenate([gates[name] for name in kept])
    left = jnp.concatenate(list(kept.values())).astype(jnp.float32)
    counts = jnp.histogram(values, bins=BINS, range=(0.0, 1.0), weights=left)[0]
    return {"relaxed": relative_cost(neurons, params, lane), "histogram": counts / left.sum()}


# --- the stages -----------------------------------------------------------------------------------


class Study(NamedTuple):
    """What all stages share."""

    model: Mapping[str, Any]  # what `models.model` was called with
    neurons: Neurons
    program: lanes.Program
    schedule: Callable[[int], optax.Schedule]  # the rates of a stage of so many steps
    decay: float  # of weights, never of gates
    keys: jax.Array  # (seeds,)
    arms: Mapping[str, float | None]  # name -> budget of FLOPs, 0 for none; None: dense
    stages: Sequence[Stage]
    # jitted, of stacks
    gates: Callable[[Any, Lane], tuple[jax.Array, ...]]  # of params, in the order of the groups
    variables: Callable[[Any, Any, Lane], Any]  # of params and running statistics, under gates
    measure: Callable[[Any, Lane], dict[str, jax.Array]]  # of params: what is logged
    test: measures.Accuracy

    @property
    def budgets(self) -> list[float | None]:
        """Of each lane: seeds next to each other, arm after arm."""
        return [budget for budget in self.arms.values() for _ in range(len(self.keys))]


class Settled(NamedTuple):
    """What goes from stage to stage."""

    params: dict[str, Any]  # of the network, and logits in the order of the groups
    batch_stats: Any
    gates: tuple[jax.Array, ...]  # (lanes, size) at the end of the stage, in that order
    kept: tuple[np.ndarray, ...]  # neurons, bool (lanes, size)


def untrained(s: Study) -> Settled:
    """Every arm begins with the weights of all recipes."""
    first, count = lanes.initial(s.program, s.keys), len(s.budgets)
    logits = tuple(jp.structured.gate_logits(s.neurons.structure).values())
    learned = {
        NETWORK: lanes.tile(first.params, len(s.arms)),
        GATES: jax.tree.map(lambda x: jnp.tile(x, (count, 1)), logits),
    }
    statistics = lanes.tile(first.batch_stats, len(s.arms))
    ones = [np.ones((count, group.size), bool) for group in s.neurons.structure.groups.values()]
    gates = tuple(jnp.asarray(mask, jnp.float32) for mask in ones)
    return Settled(learned, statistics, gates, tuple(ones))


def one_stage(
    s: Study, journal: Journal, watch: Watch, index: int, settled: Settled
) -> tuple[Settled, None]:
    """Cuts by the gates that were learnt, then trains what is left; it logs by itself."""
    stage, (params, batch_stats) = s.stages[index], settled[:2]
    left = cut(s, settled, stage)
    lane = lane_of(s, stage, left)
    if not stage.gating:  # fold them first: what is cut has been multiplied by zero then
        under = lane_of(s, stage._replace(gating=True), left)
        folded = s.variables(params, batch_stats, under)
        params, batch_stats = {**params, NETWORK: folded["params"]}, folded.get("batch_stats", {})
    state = lanes.begin(s.program, Network(params, batch_stats, None), lane)
    first = sum(before.steps for before in s.stages[:index])
    watch.begin(stage, first, lane, left, state)

    def train(state: State, start: int, at: At) -> State:
        for point in lanes.advance(s.program, state, lane, stage.steps, start, first):
            state = point.state
            watch.look(point)
            at(point.step, state)
        return lanes.gathered(state)

    name = f"stage {index + 1} of {len(s.stages)}: {stage.name}"
    words = f"{len(lane.order)} networks"
    state = journal.once(name, stage.steps, state, train, words)
    kept = tuple(np.stack([one.kept[name] for one in left]) for name in s.neurons.structure.groups)
    return Settled(state.params, state.batch_stats, s.gates(state.params, lane), kept), None


def removals(s: Study, settled: Settled) -> list[Removal]:
    """What is left of each lane, without branches that lost all their neurons."""
    return [
        jp.structured.remove_emptied(
            s.neurons.structure, small.by_group(s.neurons.structure, masks)
        )
        for masks in zip(*settled.kept, strict=True)
    ]


def cut(s: Study, settled: Settled, stage: Stage) -> list[Removal]:
    """What is left of each lane in this stage, by the gates of the stage before."""
    left, gates = removals(s, settled), [np.asarray(gate) for gate in settled.gates]
    if stage.threshold is None:
        return left
    return [
        one
        if budget is None
        else jp.structured.cut(
            s.neurons.structure,
            small.by_group(s.neurons.structure, lanes.lane_of(gates, i)),
            stage.threshold,
            one,
            flops=budget or None,
            exact=stage is s.stages[-1],
            never_empty=s.neurons.held,
        )
        for i, (one, budget) in enumerate(zip(left, s.budgets, strict=True))
    ]


def lane_of(s: Study, stage: Stage, left: Sequence[Removal]) -> Lane:
    """How all networks train in this stage."""
    structure, length = s.neurons.structure, max(each.steps for each in s.stages)
    relaxed = jnp.asarray([budget is not None for budget in s.budgets])
    ramp = jp.gates.cubic_ramp(0.48 * stage.steps, 0.5 * stage.steps)  # a switch, half-way
    ejection = stage.ejection * jax.vmap(ramp)(jnp.arange(length))
    rates = lanes.table(s.schedule(stage.steps), stage.steps, length)
    full = lambda x, mask: jnp.ones(x.shape, bool) if mask is None else mask
    masks = [
        jax.tree.map(full, structure.shapes, jp.structured.masks(structure, one)) for one in left
    ]
    stack = lambda *xs: jnp.stack([jnp.asarray(x) for x in xs])
    return Lane(
        *lanes.alike(lanes.tile(s.keys, len(s.arms)), rates, s.decay),
        pull=jnp.where(relaxed, jnp.full(len(left), stage.pull, jnp.float32), 0),
        ejection=jnp.where(relaxed[:, None], ejection, 0),
        target=jnp.asarray([budget or 0.0 for budget in s.budgets], jnp.float32),
        gating=relaxed & stage.gating,
        kept=tuple(stack(*(one.kept[name] for one in left)) for name in structure.groups),
        masks=jax.tree.map(stack, *masks),
    )


# --- what is asked for ----------------------------------------------------------------------------


def study_of(config: Config, dataset: data.Dataset) -> Study:
    """The programs of all stages; raises `RecipeError` for budgets that can't be met."""
    model, module = small.network_of(config, dataset)
    plan = settings.plan_of(config, len(dataset.train.labels))
    structure = jp.analyze(module.apply, *small.shapes_of(module, dataset.train.images.shape[1:]))
    held = jp.structured.required_groups(structure) if config.collapse else list(structure.groups)
    count = jp.structured.counter(structure)
    dense = count({}).flops
    fewest = {n: np.arange(group.size) < (n in held) for n, group in structure.groups.items()}
    least = count(fewest).flops / dense
    for share in config.flops:
        if 0 < share < least:
            raise RecipeError(
                f"--flops {share:g} can't be met: with one neuron in each layer {least:.4g} of the "
                "FLOPs are left"
            )
    stages, chunk_steps = stages_of(config, plan.steps, plan.chunk_steps)
    neurons = Neurons(structure, dense, tuple(held))
    optimizer, loss = optimizer_of(config), loss_of(neurons, module, config.rho)
    gates = lambda params, lane: tuple(gates_of(neurons, params[GATES], lane).values())
    return Study(
        model=model,
        neurons=neurons,
        program=lanes.program(
            module, optimizer, dataset.train, config.batch_size, chunk_steps, loss
        ),
        schedule=lambda steps: settings.rates(config, steps),
        decay=config.weight_decay,
        keys=lanes.seed_keys(config.seed, config.seeds),
        arms={DENSE: None} | {report.arm_name(share): share for share in config.flops},
        stages=stages,
        gates=jax.jit(jax.vmap(gates)),  # a dict would come back in the order of its names
        variables=jax.jit(jax.vmap(partial(under_gates, neurons))),
        measure=jax.jit(jax.vmap(partial(measured, neurons))),
        test=measures.accuracy(module, dataset.test),
    )


def stages_of(config: Config, steps: int, chunk_steps: int) -> tuple[list[Stage], int]:
    """The stages, of so many steps in all, and steps per call of the device, near those asked.

    All stages but the last are a multiple of these: each other length would be a compilation.
    """
    search = [None, *config.thresholds]
    parts = 1 + len(search) + FINAL
    if steps < 2 * parts:
        raise RecipeError(
            f"--steps must be at least {math.ceil(2 * parts)}, 2 a stage; got {steps}"
        )
    calls = max(round(steps / parts / chunk_steps), 1)
    chunk_steps = int(steps / parts) // calls
    length = calls * chunk_steps
    stages = [Stage("init", length, None, 1e-4, 1e-4)]
    for i, threshold in enumerate(search):
        stages.append(Stage(f"search {i}", length, threshold, config.pull, config.ejection))
    rest = steps - length * len(stages)
    final = Stage("final", rest, config.final_threshold, 0, 0, gating=False)
    return [*stages, final], chunk_steps


main = cli.command(Config, relax)

if __name__ == "__main__":
    main()
