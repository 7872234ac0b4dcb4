"""Lottery tickets and what they compete with: `python -m recipes.tickets --help`.

Trains several dense replicates, then prunes their smallest weights phase after phase, retraining
after each: with the weights rewound (ltr), with the rates rewound or restarted (lrr, ft, slr, clr,
llr, allr), by as much as the PQ index allows (sap), or in part by a rule that leaves more units
active (ap); beside them tickets with new initial weights (reinit) and with random masks of the same
layer-wise counts (random). The report gives the test accuracy of a network at the step of its best
validation accuracy, and the PQ index of its weights after each phase.

References: Frankle and Carbin, 2019, The Lottery Ticket Hypothesis; Renda et al., 2020, Comparing
Rewinding and Fine-tuning in Neural Network Pruning; Zimmer et al., 2023, How I Learned to Stop
Worrying and Love Retraining; Diao et al., 2023, Pruning Deep Neural Networks from a Sparsity
Perspective; Liu et al., 2022, AP: Selective Activation for De-sparsifying Pruned Neural Networks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import best, cli, data, dead, flags, lanes, measures, models, settings, shift
from recipes.common.best import End
from recipes.common.data import Key
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Lane, Network
from recipes.reports import tickets as report
from recipes.reports.tickets import CONTROLS, METHODS, RETRAINING, REWINDING

ARMS = (*METHODS, *CONTROLS)
ALLOCATIONS: dict[str, Any] = {"uniform": jp.uniform, "global": jp.global_threshold}
LAST = ("half", "exempt", "pruned")
SCOPES: dict[str, Any] = {"neuron": {"axis": -1}, "layer": {}, "global": {"together": True}}
EPOCHS = {"digits": 20, "mnist": 2, "cifar10": 10}
HELD_OUT = 0.1  # of the training examples, unless said
EXAMPLES = 1000  # of the test data: ap counts the units that are zero there
REINIT = Key.STUDY  # the key of new initial weights
PHASE = Key.STUDY + 1  # and above: the key of a phase: new orders of examples, shuffled masks


@dataclass(frozen=True)
class Config(settings.Shifted):
    """Iterative pruning: lottery tickets, their controls, and ways of retraining."""

    out: Path = Path("runs/tickets")
    seeds: settings.Seeds = 5
    """The number of replicates that train at once."""
    epochs: Annotated[
        float | None, flags.within("[0, 1000000]"), flags.default("digits 20, mnist 2, cifar10 10")
    ] = None
    """Passes over the data, of the first training and of each rewound one."""
    evaluations: flags.Count = 5
    """How often in a phase validation accuracy is measured, evenly spread."""
    method: Annotated[tuple[str, ...], flags.choice(ARMS), flags.DISTINCT] = (
        "ltr",
        "reinit",
        "random",
    )
    """One method, or several side by side; reinit and random are controls of ltr."""
    sparsity: Annotated[float, flags.within("(0, 1)")] = 0.98
    """The fraction of weights that are pruned after the last phase."""
    rate: Annotated[
        float | None, flags.within("(0, 1)"), flags.default("what leads to --sparsity")
    ] = None
    """In place of --sparsity: the fraction of the weights left that each phase prunes."""
    phases: flags.Count = 18
    """How often to prune and train again; 18 to 0.98 prune 20 % of what is left, as published."""
    rewind: Annotated[int, flags.at_least(0)] = 0
    """ltr, sap, ap: rewind to the weights of this step of the first training; 0 are the initial."""
    retrain_steps: Annotated[int | None, flags.at_least(1), flags.default("as at first")] = None
    """lrr, ft, slr, clr, llr, allr: training steps in a phase."""
    allocation: Annotated[str, flags.choice(ALLOCATIONS)] = "uniform"
    """The same fraction of each layer, or one threshold for all, which may empty a layer."""
    last_layer: Annotated[
        str | None,
        flags.choice(LAST),
        flags.default("half if uniform, exempt if global"),
    ] = None
    """The layer of the logits: pruned at half the rate of the others, not at all, or as they are;
    --sparsity is the sparsity of the others."""
    sap_norms: tuple[float, float] = (0.5, 1.0)
    """p and q of the PQ index, by which sap prunes, and which is told for all; 0 < p <= 1 <= q."""
    sap_scope: Annotated[str, flags.choice(SCOPES)] = "global"
    """sap: the unit that has one index and one number of weights to prune."""
    ap_share: Annotated[float, flags.within("[0, 1]")] = 0.1
    """ap: of what a phase prunes, the fraction that goes to make more units active."""
    validation: Annotated[int | None, flags.default("a tenth")] = None
    """Training examples to hold out, to choose the step to test by."""
    tolerance: Annotated[float, flags.within("[0, 100]")] = 0.5
    """An arm keeps up with dense networks while its mean is less than this many points below."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        for arm in CONTROLS:
            if arm in self.method and "ltr" not in self.method:
                yield f"--method {arm} is a control of ltr: give both"
        if last_layer(self) == "half" and self.allocation != "uniform":
            yield (
                "--last-layer half is half the rate of the other layers, and only with "
                "--allocation uniform do they have one; choose exempt or pruned"
            )
        p, q = self.sap_norms
        if not (0 < p <= 1 <= q and p < q):
            yield f"--sap-norms must be p and q, 0 < p <= 1 <= q, p < q; got {p:g} {q:g}"
        if "ap" in self.method and self.model == "vit":
            yield "--method ap counts units with ReLU, and --model vit has none; choose another"
        if "ft" in self.method and self.schedule == "cosine":
            yield (
                "--method ft trains at the lowest rate of --schedule cosine, which is all but "
                "zero; use --schedule drops or constant"
            )


def tickets(config: Config) -> dict[str, Any]:
    """Trains, prunes, writes the folder `config.out`; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    tenth = round(HELD_OUT * len(dataset.train.labels))
    held = tenth if config.validation is None else config.validation
    train, validation = data.hold_out(dataset.train, held)
    study = study_of(config, dataset._replace(train=train), validation)
    began = time.perf_counter()
    with journal(config) as kept:
        phase = partial(one_phase, study, kept)
        settled = lanes.phases(kept, 1 + config.phases, untrained(study), phase)
    seconds = time.perf_counter() - began
    chance = dead.chance(dataset.test.labels)
    return report.write(config, study, kept.records, settled.ends, held, seconds, chance)


Start = tuple[Network, Lane]  # what an arm trains a phase from: stacks over replicates


# --- the methods ----------------------------------------------------------------------------------


def transforms(config: Config) -> dict[str, jp.MaskTransform]:
    """Method -> the pruning of each phase; an exempt layer has masks too."""
    first_last, n, p_q = models.FIRST_LAST[config.model], config.phases, config.sap_norms
    sparsity, last, how = sparsity_of(config), first_last[1], last_layer(config)
    allocation = ALLOCATIONS[config.allocation]
    if how == "half":
        rate = jp.tickets.rate(sparsity, n)
        slower = math.log1p(-rate / 2) / math.log1p(-rate)
        allocation = jp.per_layer({last: lambda s: 1 - (1 - s) ** slower}, jp.uniform)
    prunable = jp.matching(exclude=last) if how == "exempt" else jp.kernels

    by_phase = jp.tickets.schedule(sparsity, n)
    smallest = jp.prune(jp.magnitude, allocation, by_phase, prunable=prunable)
    adaptive = jp.sap(*p_q, **SCOPES[config.sap_scope], prunable=prunable)
    active = jp.tickets.ap(by_phase, config.ap_share, allocation, prunable)
    made = dict.fromkeys(METHODS, smallest) | {"sap": adaptive, "ap": active}
    return {name: jp.chain(jp.fixed(lanes.keep_all), own) for name, own in made.items()}


def rates_of(s: Study, method: str, phase: jp.tickets.Phase) -> jax.Array:
    """The learning rates of a phase (replicates, length)."""
    n = s.length_of(method)
    if method == "allr":
        return _adaptive(phase, s.peak, n, s.steps, s.length)
    rewound: optax.Schedule = lambda count: s.schedule(count + s.rewind)
    schedules: dict[str, Callable[[], optax.Schedule]] = {
        "ltr": lambda: rewound,
        "sap": lambda: rewound,
        "ap": lambda: rewound,
        "lrr": lambda: jp.tickets.lrr(s.schedule, s.steps, n),
        "ft": lambda: jp.tickets.ft(s.schedule, s.steps),
        "slr": lambda: jp.tickets.slr(s.schedule, s.steps, n),
        "clr": lambda: jp.tickets.clr(s.schedule, s.steps, n),
        "llr": lambda: jp.tickets.llr(s.peak, n),
    }
    return lanes.alike(s.keys, lanes.table(schedules[method](), n, s.length)).rates


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _adaptive(phase: jp.tickets.Phase, peak: float, n: int, steps: int, length: int) -> jax.Array:
    """The rates of `tickets.allr`, by the weights that each replicate lost."""

    def of_one(phase: jp.tickets.Phase) -> jax.Array:
        taken = phase.before, phase.params, phase.pruned
        return lanes.table(jp.tickets.allr(peak, n, *taken, steps), n, length)

    return jax.vmap(of_one)(phase)


def starts_of(s: Study, settled: Settled, index: int) -> dict[str, Start]:
    """The networks and lanes with which the arms train phase `index`, after the phase before."""
    early, seeds, starts = settled.early, len(s.keys), {}
    of_phase = data.folded(s.keys, PHASE + index)
    for method in (arm for arm in s.arms if arm in METHODS):
        network, rewinds = settled.ends[method].network, method in REWINDING
        back = early.params if rewinds else None
        phase = pruned(s.transforms[method], network.params, network.masks, jnp.int32(index), back)
        stats = early.batch_stats if rewinds else network.batch_stats
        # a ticket sees the same examples from the rewind step on; others have new orders
        keys = s.keys if rewinds else of_phase
        lane = Lane(keys, rates_of(s, method, phase), jnp.zeros(seeds))
        starts[method] = Network(phase.params, stats, phase.masks), lane
    if "reinit" in s.arms:
        masks = starts["ltr"][0].masks
        rates = lanes.table(s.schedule, s.steps, s.length)
        new = lanes.initial(s.program, data.folded(s.keys, REINIT))
        starts["reinit"] = _under(new, masks), lanes.alike(s.keys, rates)
    if "random" in s.arms:
        masks = _shuffled(of_phase, starts["ltr"][0].masks)
        starts["random"] = _under(early, masks), starts["ltr"][1]
    return {arm: starts[arm] for arm in s.arms}


@partial(jax.jit, static_argnums=0)
def pruned(
    transform: jp.MaskTransform, params: Any, masks: Any, index: Any, rewind_to: Any
) -> jp.tickets.Phase:
    """The next phase of every network; one program for all phases."""

    @jax.vmap
    def of_one(params: Any, masks: Any, rewind_to: Any) -> jp.tickets.Phase:
        state = transform.init(params)._replace(masks=masks)
        return jp.tickets.next_phase(transform, state, params, index, rewind_to)

    return of_one(params, masks, rewind_to)


@jax.jit
@jax.vmap
def _shuffled(key: jax.Array, masks: Any) -> Any:
    return jp.tickets.shuffle(key, masks)


def _under(network: Network, masks: Any) -> Network:
    return network._replace(params=jp.apply_masks(network.params, masks), masks=masks)


# --- the phases -----------------------------------------------------------------------------------


class Settled(NamedTuple):
    """The state between phases."""

    early: Network  # dense, at the step to rewind to
    ends: dict[str, End]  # by arm, the result of its last phase; at first the dense networks


class Study(NamedTuple):
    """The values that all phases share."""

    program: lanes.Program
    arms: tuple[str, ...]
    transforms: Mapping[str, jp.MaskTransform]  # of each method: what a phase prunes
    keys: jax.Array  # of the replicates
    schedule: optax.Schedule  # of the first training
    peak: float
    steps: int
    rewind: int
    retrain_steps: int
    phases: int
    evaluations: int  # of validation accuracy, in a phase
    validate: measures.Accuracy
    test: measures.Accuracy
    shift: shift.Measure | None  # of dense networks, and after the last phase
    norms: tuple[float, float]  # p and q of the PQ index
    dead: measures.Accuracy | None  # the dynamic dead rate, where ap is compared

    @property
    def length(self) -> int:
        """Steps of a phase: of the arm that trains longest."""
        return max(self.length_of(arm) for arm in self.arms)

    def length_of(self, arm: str) -> int:
        """Steps that an arm trains in a phase; after them its rates are zero."""
        if arm == "reinit":  # new weights have trained no step yet
            return self.steps
        return self.retrain_steps if arm in RETRAINING else self.steps - self.rewind


def untrained(s: Study) -> Settled:
    """Before the first phase."""
    first = lanes.initial(s.program, s.keys)
    none = np.zeros(len(s.keys), int), first, np.zeros(len(s.keys))
    return Settled(first, dict.fromkeys(s.arms, End(first, *none)))


def one_phase(
    s: Study, journal: Journal, phase: int, settled: Settled
) -> tuple[Settled, dict[str, Any]]:
    """Trains dense networks, of which the early ones are stored; later prunes and trains again."""
    if phase == 0:
        lane = lanes.alike(s.keys, lanes.table(s.schedule, s.steps))
        looks = best.looks_at(s.steps, s.program.chunk_steps, s.evaluations)
        looks = sorted({*looks, s.rewind} - {0})
        start = {"dense": (settled.early, lane)}
        ends, early = train(s, start, looks, "dense", journal, store=s.rewind)
        settled = Settled(early, dict.fromkeys(s.arms, ends["dense"]))
    else:
        starts = starts_of(s, settled, phase - 1)
        looks = best.looks_at(s.length, s.program.chunk_steps, s.evaluations)
        ends, _ = train(s, starts, looks, f"phase {phase} of {s.phases}", journal, first=s.rewind)
        settled = settled._replace(ends=ends)
    step = (journal.records[-1]["step"] if journal.records else 0) + looks[-1]
    record = {"phase": phase, "step": step, "seconds": journal.seconds()}
    under_shift = s.shift if phase in (0, s.phases) else None
    told = {
        arm: report.of_end(end, s.test, s.norms, under_shift, s.dead) for arm, end in ends.items()
    }
    return settled, record | told


def train(
    s: Study,
    starts: Mapping[str, Start],
    looks: Sequence[int],
    name: str,
    journal: Journal,
    first: int = 0,
    store: int | None = None,
) -> tuple[dict[str, End], Network]:
    """Trains all arms side by side; also returns the networks at the step `store`."""
    network, lane = lanes.join(*starts.values())
    end, stored = best.train(
        s.program, s.validate, network, lane, looks, journal, name, first, store
    )
    n = len(s.keys)
    return {arm: lanes.part(end, i * n, (i + 1) * n) for i, arm in enumerate(starts)}, stored


# --- what is asked for ----------------------------------------------------------------------------


def study_of(config: Config, dataset: data.Dataset, validation: data.Split) -> Study:
    """What all phases share; raises `RecipeError` for steps that do not fit one another."""
    epochs = EPOCHS[config.dataset] if config.epochs is None else config.epochs
    plan = settings.plan_of(replace(config, epochs=epochs), len(dataset.train.labels))
    retrain = plan.steps if config.retrain_steps is None else config.retrain_steps
    if config.rewind >= plan.steps:
        raise RecipeError(
            f"--rewind {config.rewind}: the first training has {plan.steps} steps, and weights are "
            "stored before the last alone; rewind to an earlier step, or train longer"
        )
    if "lrr" in config.method and retrain > plan.steps:
        raise RecipeError(
            f"--method lrr can't replay the last {retrain} of {plan.steps} rates; "
            "--retrain-steps must be at most the steps of the first training"
        )
    optimizer = settings.OPTIMIZERS[config.optimizer]
    module, by_ap = settings.module_of(config, dataset.classes), "ap" in config.method
    by_lane = lambda lane: jp.sparsify(lanes.by_rates(optimizer, lane), jp.fixed(lanes.keep_all))
    return Study(
        program=lanes.program(module, by_lane, dataset.train, plan.batch_size, plan.chunk_steps),
        arms=config.method,
        transforms=transforms(config),
        keys=lanes.seed_keys(config.seed, config.seeds),
        schedule=settings.rates(config, plan.steps),
        peak=config.learning_rate,
        steps=plan.steps,
        rewind=config.rewind,
        retrain_steps=retrain,
        phases=config.phases,
        evaluations=config.evaluations,
        validate=measures.accuracy(module, validation),
        test=measures.accuracy(module, dataset.test),
        shift=shift.measure_of(module, dataset, config.dataset) if config.shift else None,
        norms=config.sap_norms,
        dead=measures.dead_rate(module, dataset.test.images[:EXAMPLES]) if by_ap else None,
    )


def last_layer(config: Config) -> str:
    """How the layer of the logits is pruned."""
    return config.last_layer or ("half" if config.allocation == "uniform" else "exempt")


def sparsity_of(config: Config) -> float:
    """After the last phase."""
    if config.rate is None:
        return config.sparsity
    return float(jp.tickets.sparsity_after(config.rate, config.phases))


main = cli.command(Config, tickets)

if __name__ == "__main__":
    main()
