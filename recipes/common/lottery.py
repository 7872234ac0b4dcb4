"""Studies of lottery tickets: what each arm begins a phase from, and how all train it together.

A method prunes its own networks phase after phase, and rewinds their weights or only the rates. A
control is trained beside tickets (`ltr`) and has their masks, or as many weights of each layer.
All arms and replicates of a phase are lanes of one program, and so are all phases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.masks import all_kept
from recipes.common import phases, training
from recipes.common.journal import At, Journal
from recipes.common.phases import Lane, Phases
from recipes.common.training import TrainState

REWINDING = ("ltr", "sap")  # the weights go back to those of the rewind step
RETRAINING = ("lrr", "ft", "slr", "clr", "llr", "allr")  # the weights stay, by these rates
METHODS = ("ltr", *RETRAINING, "sap")
CONTROLS = ("reinit", "random")  # of ltr

Accuracy = Callable[[Any, Any], np.ndarray]  # (params, batch_stats) of a stack -> (lanes,)


class Network(NamedTuple):
    """A stack of networks, one a replicate."""

    params: Any
    batch_stats: Any
    masks: Any


class Start(NamedTuple):
    """What an arm trains a phase from: its networks, their rates and the keys of their data."""

    network: Network
    rates: jax.Array  # (replicates, steps)
    keys: jax.Array  # (replicates,)


class End(NamedTuple):
    """What came of it; the early networks are those of the step of best validation accuracy."""

    network: Network
    step: np.ndarray  # of the early network (replicates,)
    early: Network
    validation: np.ndarray  # accuracy of the early network (replicates,)


class Stored(NamedTuple):
    """The first training, dense: networks by the step to rewind to, and at its end."""

    at: dict[int, Network]
    trained: Network


class Study(NamedTuple):
    """What all phases share."""

    program: Phases
    arms: tuple[str, ...]
    transforms: Mapping[str, jp.MaskTransform]  # of each method: what a phase prunes
    keys: jax.Array  # of the replicates
    schedule: optax.Schedule  # of the first training
    peak: float
    steps: int
    rewind: int
    retrain_steps: int
    evaluations: int  # of validation accuracy, in a phase
    validation: Accuracy

    @property
    def length(self) -> int:
        """Steps of a phase: of the arm that trains longest."""
        return max(self.length_of(arm) for arm in self.arms)

    def length_of(self, arm: str) -> int:
        """Steps that an arm trains in a phase; after them its rates are zero."""
        if arm == "reinit":  # new weights have trained no step yet
            return self.steps
        return self.retrain_steps if arm in RETRAINING else self.steps - self.rewind


def first(s: Study) -> Network:
    """The initial networks, all weights kept."""
    return _initial(s.program.arm.module, s.keys, s.program.train.images[:1])


def _initial(module: nn.Module, keys: jax.Array, image: Any) -> Network:
    variables = training.init_variables(module, keys, jnp.asarray(image))
    masks = all_kept(jp.kernels(variables["params"]))
    return Network(variables["params"], variables.get("batch_stats", {}), masks)


def first_training(s: Study, journal: Journal) -> tuple[Stored, End]:
    """Trains dense networks, and stores them where there may be rewound to."""
    initial = first(s)
    start = Start(initial, _same(s, phases.rates(s.schedule, s.steps)), s.keys)
    points = looks_at(s.steps, s.program.chunk_steps, s.evaluations)
    points = sorted({*points, s.rewind} - {0})
    ends, kept = train(s, {"dense": start}, points, "dense", journal, keep=s.rewind)
    early = Network(kept[0], kept[1], initial.masks)
    return Stored({0: initial, s.rewind: early}, ends["dense"].network), ends["dense"]


def looks_at(steps: int, chunk_steps: int, evaluations: int) -> list[int]:
    """Evenly spread steps, whole chunks where there are several, and the last."""
    chunks = [round(steps * i / evaluations / chunk_steps) for i in range(1, evaluations)]
    return sorted({n * chunk_steps for n in chunks if 0 < n * chunk_steps < steps} | {steps})


def begin(s: Study, last: Mapping[str, Network], stored: Stored, index: int) -> dict[str, Start]:
    """What the arms train phase `index` from, given what the methods came to in the one before."""
    early = jp.weights_at(stored.at, s.rewind)
    starts = {}
    for method in (arm for arm in s.arms if arm in METHODS):
        network, rewinds = last[method], method in REWINDING
        back = early.params if rewinds else None
        phase = _pruned(s.transforms[method], network.params, network.masks, jnp.int32(index), back)
        stats = early.batch_stats if rewinds else network.batch_stats
        # a ticket sees again what it saw from the rewind step on; others go on with new orders
        keys = s.keys if rewinds else _folded(s.keys, 4 + index)
        starts[method] = Start(
            Network(phase.params, stats, phase.masks), _rates(s, method, phase), keys
        )
    if "reinit" in s.arms:
        masks = starts["ltr"].network.masks
        new = _initial(s.program.arm.module, _folded(s.keys, 3), s.program.train.images[:1])
        params = jp.apply_masks(new.params, masks)
        rates = _same(s, phases.rates(s.schedule, s.steps, s.length))
        starts["reinit"] = Start(Network(params, new.batch_stats, masks), rates, s.keys)
    if "random" in s.arms:
        masks = _shuffled(_folded(s.keys, 4 + index), starts["ltr"].network.masks)
        params = jp.apply_masks(early.params, masks)
        network = Network(params, early.batch_stats, masks)
        starts["random"] = Start(network, starts["ltr"].rates, s.keys)
    return {arm: starts[arm] for arm in s.arms}


@partial(jax.jit, static_argnums=0)
def _pruned(
    transform: jp.MaskTransform, params: Any, masks: Any, index: Any, rewind_to: Any
) -> jp.Phase:
    """The next phase of every replicate; one program for all phases."""

    @jax.vmap
    def of_one(params: Any, masks: Any, rewind_to: Any) -> jp.Phase:
        state = transform.init(params)._replace(masks=masks)
        return jp.next_phase(transform, state, params, index, rewind_to)

    return of_one(params, masks, rewind_to)


def _rates(s: Study, method: str, phase: jp.Phase) -> jax.Array:
    """The rates of a phase (replicates, length)."""
    table = partial(phases.rates, steps=s.length_of(method), length=s.length)
    if method in REWINDING:
        return _same(s, table(lambda count: s.schedule(count + s.rewind)))
    if method == "allr":
        return _adaptive(phase, s.peak, s.retrain_steps, s.steps, s.length)
    of_method: dict[str, Callable[[], optax.Schedule]] = {
        "lrr": lambda: jp.lrr(s.schedule, s.steps, s.retrain_steps),
        "ft": lambda: jp.ft(s.schedule, s.steps),
        "slr": lambda: jp.slr(s.schedule, s.steps, s.retrain_steps),
        "clr": lambda: jp.clr(s.schedule, s.steps, s.retrain_steps),
        "llr": lambda: jp.llr(s.peak, s.retrain_steps),
    }
    return _same(s, table(of_method[method]()))


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _adaptive(
    phase: jp.Phase, peak: float, retrain_steps: int, steps: int, length: int
) -> jax.Array:
    """Those of `allr`, by what the prune of each replicate took away."""

    def of_one(phase: jp.Phase) -> jax.Array:
        taken = phase.before, phase.params, phase.pruned
        return phases.rates(jp.allr(peak, retrain_steps, *taken, steps), retrain_steps, length)

    return jax.vmap(of_one)(phase)


def train_phase(
    s: Study, starts: Mapping[str, Start], name: str, journal: Journal
) -> dict[str, End]:
    """Trains all arms of a phase, from the rewind step on in the order of the data."""
    points = looks_at(s.length, s.program.chunk_steps, s.evaluations)
    return train(s, starts, points, name, journal, s.rewind)[0]


def train(
    s: Study,
    starts: Mapping[str, Start],
    points: Sequence[int],
    name: str,
    journal: Journal,
    first_step: int = 0,
    keep: int | None = None,
) -> tuple[dict[str, End], Any]:
    """Trains arms up to the last of `points`, steps at which validation accuracy is measured.

    Also the (params, batch_stats) of the point `keep`.
    """
    stacked = jax.tree.map(lambda *x: jnp.concatenate(x), *starts.values())
    params, batch_stats, masks = stacked.network
    count = len(stacked.rates)
    lanes = Lane(stacked.rates, jnp.zeros(count))
    first_own: tuple[Any, Any] = params, batch_stats

    def go_on(course: _Course, start: int, at: At) -> _Course:
        state, best, step, accuracy, kept = course

        def between(now: int, state: TrainState) -> None:
            at(now, _Course(state, best, step, accuracy, kept))

        for point in (point for point in points if point >= start):
            state = phases.advance(
                s.program, state, lanes, stacked.keys, point, between, start, first_step
            )
            start, own = point, (state.params, state.batch_stats)
            now = s.validation(*own)
            better = now > accuracy
            best = _where(jnp.asarray(better), own, best)
            step, accuracy = np.where(better, point, step), np.where(better, now, accuracy)
            if point == keep:
                kept = jax.tree.map(jnp.copy, own)  # training goes on, and donates these
        return _Course(state, best, step, accuracy, kept)

    state = phases.begin(s.program, params, batch_stats, masks, lanes)
    none = np.zeros(count, int), np.full(count, -1.0)
    course = _Course(state, first_own, *none, () if keep is None else first_own)
    course = journal.once(name, points[-1], course, go_on, f"{count} networks")
    state, best, step, accuracy, kept = course
    end = (
        Network(state.params, state.batch_stats, masks),
        step,
        Network(best[0], best[1], masks),
        accuracy,
    )
    size = len(s.keys)
    ends = {
        arm: End(*jax.tree.map(lambda x, i=i: x[i * size : (i + 1) * size], end))
        for i, arm in enumerate(starts)
    }
    return ends, kept


class _Course(NamedTuple):
    """All that changes as lanes train, beside the step."""

    state: TrainState
    best: Any  # (params, batch_stats) of the step of best validation accuracy
    step: np.ndarray
    accuracy: np.ndarray
    kept: Any  # (params, batch_stats) to rewind to


@jax.jit
def _where(lane: jax.Array, a: Any, b: Any) -> Any:
    """`a` in the lanes that are True, else `b`."""
    return jax.tree.map(lambda x, y: jax.vmap(jnp.where)(lane, x, y), a, b)


@jax.jit
@jax.vmap
def _shuffled(key: jax.Array, masks: Any) -> Any:
    return jp.shuffle(key, masks)


def _folded(keys: jax.Array, data: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def _same(s: Study, table: jax.Array) -> jax.Array:
    return jnp.broadcast_to(table, (len(s.keys), *table.shape))
