"""The stages of continuous relaxation: cut, train; logged, tested, and gone on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.structured.kept import Removal
from recipes.common import relaxing, training
from recipes.common.data import Dataset
from recipes.common.journal import Journal
from recipes.common.relaxing import GATES, NETWORK, Lane, Stage, State, Study

Records = list[dict[str, Any]]  # the lines of metrics.jsonl
Tools = dict[str, Any]


class Settled(NamedTuple):
    """What goes from stage to stage; every array has a lane axis in front but `stage`."""

    params: Any
    batch_stats: Any
    gates: tuple[jax.Array, ...]  # at the end of the stage, in the order of the groups
    kept: tuple[np.ndarray, ...]
    stage: np.ndarray  # how many are over


class Networks(NamedTuple):
    """Where the stages led to, a stack over lanes."""

    variables: Any  # zero where neurons were cut
    left: list[Removal]


def all_stages(
    s: Study, dataset: Dataset, journal: Journal, evaluations: int
) -> tuple[Networks, Records]:
    """Every stage that the journal does not hold yet."""
    params, batch_stats = relaxing.first(s)
    lanes = len(s.arms) * len(s.keys)
    sizes = [group.size for group in s.structure.groups.values()]
    kept = tuple(np.ones((lanes, n), bool) for n in sizes)
    ones = tuple(jnp.ones((lanes, n), jnp.float32) for n in sizes)
    fresh = Settled(params, batch_stats, ones, kept, np.array(0))
    settled = journal.last(fresh) or fresh
    watch = Watch(s, dataset, journal, evaluations)
    chunk = relaxing.make_chunk(s)
    for index in range(int(settled.stage), len(s.stages)):
        settled = one_stage(s, settled, index, chunk, watch)
        journal.settle(settled)
    left = removals(s, settled.kept)
    last = relaxing.lanes_of(s, s.stages[-1], left)
    return Networks(watch.network(settled.params, settled.batch_stats, last), left), journal.records


def one_stage(
    s: Study, settled: Settled, index: int, chunk: training.Chunk, watch: Watch
) -> Settled:
    """Cuts by the gates that were learnt, then trains what is left."""
    stage, (params, batch_stats) = s.stages[index], settled[:2]
    gates = relaxing.named(s, settled.gates)
    left = relaxing.cut(s, gates, removals(s, settled.kept), stage)
    lanes = relaxing.lanes_of(s, stage, left)
    if not stage.gating:  # fold them first: what is cut has been multiplied by zero then
        under = relaxing.lanes_of(s, stage._replace(gating=True), left)
        folded = watch.network(params, batch_stats, under)
        params = {NETWORK: folded["params"], GATES: params[GATES]}
        batch_stats = folded.get("batch_stats", {})
    keys = jnp.tile(s.keys, len(s.arms))
    before = sum(own.steps for own in s.stages[:index])
    watch.begin(stage, before, lanes, left, params, batch_stats)

    def train(state: State, start: int, at: Callable[[int, State], None]) -> State:
        return training.advance(
            chunk,
            state,
            s.train,
            keys,
            lanes,
            batch_size=s.batch_size,
            chunk_steps=s.chunk_steps,
            start=start,
            stop=stage.steps,
            at=at,
            first=before,
            look=watch.look,
        )

    state = relaxing.begin(s, params, batch_stats, lanes)
    name = f"stage {index + 1} of {len(s.stages)}: {stage.name}"
    state = watch.journal.once(name, stage.steps, state, train, f"{len(keys)} networks")
    learnt = watch.gates(state.params, lanes)
    kept = tuple(np.stack([own.kept[name] for own in left]) for name in s.structure.groups)
    return Settled(state.params, state.batch_stats, learnt, kept, np.array(index + 1))


def removals(s: Study, kept: Sequence[np.ndarray]) -> list[Removal]:
    """What is left of each lane."""
    found = []
    for i in range(len(s.arms) * len(s.keys)):
        own = {name: np.asarray(x[i]) for name, x in relaxing.named(s, kept).items()}
        empty = not all(neurons.any() for neurons in own.values())
        found.append(jp.remove_emptied(s.structure, own) if empty else Removal(own, ()))
    return found


class Watch:
    """What there is to say of a stage, chunk by chunk."""

    def __init__(self, s: Study, dataset: Dataset, journal: Journal, evaluations: int):
        self.s, self.journal, self.evaluations = s, journal, evaluations
        self.network, self.gates = relaxing.make_network(s), relaxing.make_gates(s)
        self.measure = relaxing.make_measure(s)
        self.test: Callable[[Any, Any], np.ndarray] = training.make_evaluate(s.module, dataset.test)
        spent = journal.records[-1]["seconds"] if journal.records else 0.0
        self.began = time.perf_counter() - spent

    def begin(
        self,
        stage: Stage,
        before: int,
        lanes: Lane,
        left: Sequence[Removal],
        params: Any,
        batch_stats: Any,
    ) -> None:
        """Training goes on with this stage, after so many steps, from these params."""
        self.stage, self.before, self.lanes, self.last = stage, before, lanes, 0
        self.at_once = self.tested(params, batch_stats)
        self.flops = [jp.cost(self.s.structure, own).flops / self.s.flops for own in left]

    def look(self, step: int, state: State, metrics: Any) -> None:
        """Adds a line to metrics.jsonl; lists are over seeds."""
        measured = {**metrics, **self.measure(state.params, self.lanes)}
        measured["flops"] = np.asarray(self.flops)
        if step <= self.s.chunk_steps:  # the first line of a stage
            measured["cut_accuracy"] = self.at_once
        if step == self.stage.steps or self._due(step):
            measured["test_accuracy"] = self.tested(state.params, state.batch_stats)
        self.last, n = step, len(self.s.keys)
        arms = {
            arm: {
                key: np.asarray(values)[i * n : (i + 1) * n].tolist()
                for key, values in measured.items()
            }
            for i, arm in enumerate(self.s.arms)
        }
        seconds = round(time.perf_counter() - self.began, 2)
        self.journal.log(
            {"step": self.before + step, "stage": self.stage.name, "seconds": seconds, **arms}
        )

    def tested(self, params: Any, batch_stats: Any) -> np.ndarray:
        """Test accuracy under gates (lanes,)."""
        own = self.network(params, batch_stats, self.lanes)
        return self.test(own["params"], own.get("batch_stats", {}))

    def _due(self, step: int) -> bool:
        total = sum(stage.steps for stage in self.s.stages)
        before, now = ((self.before + n) * self.evaluations // total for n in (self.last, step))
        return before < now
