"""Arms: ways of training, side by side on the same weights and the same batches.

Every arm is a program of `lanes`, its seeds are the lanes. All of them train in turns, chunk by
chunk: logged, shown, and resumable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum, IntEnum
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxprune as jp
from recipes.common import in_blocks, lanes, measures
from recipes.common.data import Dataset, Key, Split, folded
from recipes.common.in_blocks import InBlocks
from recipes.common.journal import Journal
from recipes.common.lanes import Network, State
from recipes.common.settings import Plan
from recipes.common.terminal import progress


class Weights(Enum):
    """What the masks in an optimizer's state mean for the weights."""

    DENSE = "there are no masks"
    SPARSE = "pruned weights are zero from the first step on (`jp.sparsify`)"
    DENSE_COPY = "all weights may learn, the network uses the kept ones (`jp.keep_dense`)"


class Learned(NamedTuple):
    """Params that an arm learns beside the weights of its network, such as gates.

    Its optimizer is a `jp.sparsify`, which counts the `step`.
    """

    start: Callable[[Any], Any]  # the network's params -> all params
    # (params, batch_stats, images, labels, step, key) -> loss, (accuracy, batch_stats)
    loss: Callable[..., tuple[jax.Array, tuple[jax.Array, Any]]]
    network: Callable[[Any, jax.Array], Any]  # (params, step) -> the params of the network in tests
    measure: Callable[[Any, jax.Array], dict[str, jax.Array]]  # (params, step) -> numbers to log


class Arm(NamedTuple):
    """A network and how to train it. Arms that differ only in how they start share a program."""

    module: nn.Module
    # or made from an arm's key (`Key.METHOD` of a seed)
    optimizer: optax.GradientTransformation | Callable[[jax.Array], optax.GradientTransformation]
    weights: Weights = Weights.DENSE
    # (keys, first params) -> (params, masks), stacks over seeds
    start: Callable[[jax.Array, Any], tuple[Any, Any]] | None = None
    learned: Learned | None = None
    blocks: InBlocks | None = (
        None  # it trains the kept blocks alone, by an `optimizer` without masks
    )


class ArmKey(IntEnum):
    """The purposes of an arm's key (`Key.METHOD` of a seed). Its optimizer has the key itself."""

    SHUFFLED = 1  # masks shuffled within layers
    REDRAWN = 2  # other first weights
    LEARNED = 3  # and the step: what a gate draws


class Seeds(NamedTuple):
    """The lanes of an arm."""

    order: jax.Array  # keys (seeds,): of the weights and of the order of the examples
    own: jax.Array  # keys (seeds,): of the optimizers


def seeds_of(keys: jax.Array) -> Seeds:
    """One lane a key."""
    return Seeds(keys, folded(keys, Key.METHOD))


def program_of(arm: Arm, train: Split, batch_size: int, chunk_steps: int) -> lanes.Program:
    """The program of an arm. Where the network uses masked weights, the gradient is taken there."""
    if arm.blocks:
        how = train, batch_size, chunk_steps
        return in_blocks.program(arm.module, arm.optimizer, arm.blocks, *how)
    make = arm.optimizer if callable(arm.optimizer) else lambda key: arm.optimizer
    return lanes.program(
        arm.module,
        lambda lane: make(lane.own),
        train,
        batch_size,
        chunk_steps,
        _loss_of(arm.learned) if arm.learned else None,
        lambda state: state.params if arm.learned else network(arm, state),
    )


def _loss_of(learned: Learned) -> lanes.Loss:
    def loss(params, state, images, labels, lane):
        step = state.opt_state.step
        key = jax.random.fold_in(jax.random.fold_in(lane.own, ArmKey.LEARNED), step)
        return learned.loss(params, state.batch_stats, images, labels, step, key)

    return loss


def begin(arm: Arm, keys: jax.Array, images: np.ndarray) -> State:
    """A stack of first states, one a key; `images` (n, h, w, c) gives the input's shape."""
    p = program_of(arm, Split(images[:1], np.zeros(1, np.int32)), 1, 1)
    first, seeds = lanes.initial(p, keys), seeds_of(keys)
    if arm.start:
        params, masks = arm.start(seeds.own, first.params)
        return lanes.begin(p, Network(params, first.batch_stats, masks), seeds)
    params = jax.vmap(arm.learned.start)(first.params) if arm.learned else first.params
    state = lanes.begin(p, Network(params, first.batch_stats, None), seeds)
    if arm.blocks:
        return in_blocks.split(state.opt_state, state.batch_stats)
    if arm.weights is Weights.SPARSE:  # so that the first forward pass is sparse too
        sparse = jp.apply_masks(state.params, jp.get_masks(state.opt_state))
        state = lanes.copied(state._replace(params=sparse))
    return state


def _after(arm: Arm, step: int, first: State) -> State:
    """A stack of first states, with the shapes that it has after `step` steps."""
    return in_blocks.cut(arm.module, arm.blocks, step, first) if arm.blocks else first


def network(arm: Arm, state: State) -> Any:
    """The params that the network uses; of one state or of a stack."""
    if arm.learned:
        used, step = arm.learned.network, state.opt_state.step
        return jax.jit(jax.vmap(used) if step.ndim else used)(state.params, step)
    if arm.blocks:
        return in_blocks.network(arm.module, arm.blocks, state)[0]
    if arm.weights is Weights.DENSE_COPY:
        return jp.apply_masks(state.params, jp.get_masks(state.opt_state))
    return state.params


def masks(arm: Arm, state: State) -> Any:
    """The masks of the weights, bool; of one state or of a stack."""
    if arm.blocks:
        return in_blocks.network(arm.module, arm.blocks, state)[1]
    return jp.get_masks(state.opt_state)


# --- side by side ---------------------------------------------------------------------------------

States = dict[str, State]  # by arm; every array has a seed axis in front
History = list[dict[str, Any]]  # the lines of metrics.jsonl


def train(
    arms: Mapping[str, Arm], dataset: Dataset, plan: Plan, journal: Journal
) -> tuple[States, History]:
    """Trains every arm in turns, chunk by chunk; (final states, metrics).

    Goes on from the last checkpoint of `journal`, if it has one.
    """
    keys = lanes.seed_keys(plan.seed, plan.seeds)
    states = {name: begin(arm, keys, dataset.train.images) for name, arm in arms.items()}
    # before the checkpoint replaces the states: a resumed run needs its first masks
    watches = {name: Watch(arm, states[name]) for name, arm in arms.items()}
    states = (
        journal.last({n: _after(arms[n], journal.step, x) for n, x in states.items()}) or states
    )
    # arms of one network share a compiled test; those that differ only in their start, all
    tests = {arm.module: measures.accuracy(arm.module, dataset.test) for arm in arms.values()}
    for name, watch in watches.items():
        spent = journal.records[-1][name]["seconds"] if journal.records else 0.0
        watch.begin(states[name], spent, tests[watch.arm.module])
    split, alike = jax.device_put(dataset.train), lambda arm: arm._replace(start=None)
    programs = {
        arm: program_of(arm, split, plan.batch_size, plan.chunk_steps)
        for arm in set(map(alike, arms.values()))
    }
    runs = {
        name: lanes.advance(
            programs[alike(arm)], states[name], seeds_of(keys), plan.steps, journal.step
        )
        for name, arm in arms.items()
    }
    return lanes.gathered(_follow(runs, states, watches, plan, journal)), journal.records


class Watch:
    """The numbers of an arm as it trains."""

    def __init__(self, arm: Arm, first: State):
        self.arm = arm
        self.masked = arm.weights is not Weights.DENSE
        self.first_masks = measures.masks_of(first.opt_state) if self.masked else None
        self.measure = jax.jit(jax.vmap(arm.learned.measure)) if arm.learned else None

    def begin(self, state: State, spent: float, test: measures.Accuracy) -> None:
        """Training goes on from `state`, after `spent` seconds in earlier programs."""
        self.masks = measures.masks_of(state.opt_state) if self.masked else None
        self.spent, self.test = spent, test

    def look(self, point: lanes.Progress, tested: bool) -> dict[str, Any]:
        """The arm's part of a line of metrics.jsonl; lists are over seeds."""
        state = point.state
        record = {
            "seconds": round(self.spent + point.seconds, 4),
            "loss": np.asarray(point.metrics["loss"]).tolist(),
            "accuracy": np.asarray(point.metrics["accuracy"]).tolist(),
        }
        if self.masked:
            record |= measures.churn(state.opt_state, self.first_masks, self.masks)
            self.masks = measures.masks_of(state.opt_state)
        if self.measure:
            measured = self.measure(state.params, state.opt_state.step)
            record |= {name: values.tolist() for name, values in measured.items()}
        if tested:
            used = Network(network(self.arm, state), state.batch_stats, None)
            record["test_accuracy"] = self.test(used.variables).tolist()
        return record


def _follow(
    runs: Mapping[str, Iterator[lanes.Progress]],
    states: States,
    watches: Mapping[str, Watch],
    plan: Plan,
    journal: Journal,
) -> States:
    with progress("training", plan.steps, journal.step) as show:
        for points in zip(*runs.values(), strict=True):
            now = points[0].step
            evaluations = [s * plan.evaluations // plan.steps for s in (journal.step, now)]
            tested = evaluations[0] < evaluations[1]
            record: dict[str, Any] = {"step": now}
            for name, point in zip(runs, points, strict=True):
                record[name] = watches[name].look(point, tested)
            journal.log(record)
            show(now, _in_words(record))
            states = dict(zip(runs, (point.state for point in points), strict=True))
            journal.settle(states, now, _score(record) if tested else ())
    return states


def _score(record: Mapping[str, Any]) -> list[float]:
    """The best states are the sparsest, and among them the most accurate; means over arms."""
    arms = [own for arm, own in record.items() if arm != "step"]
    arms = [own for own in arms if "sparsity" in own] or arms
    sparsity = np.mean([own.get("sparsity", 0.0) for own in arms])
    return [round(float(sparsity), 4), float(np.mean([own["test_accuracy"] for own in arms]))]


def _in_words(record: Mapping[str, Any]) -> str:
    """Loss, training accuracy and sparsity of each arm, means over seeds; of many, accuracy."""
    words = []
    for arm, metrics in record.items():
        if arm != "step":
            at = f" {100 * np.mean(metrics['sparsity']):.1f}%" if "sparsity" in metrics else ""
            loss, accuracy = np.mean(metrics["loss"]), 100 * np.mean(metrics["accuracy"])
            many = len(record) > 4
            words.append(
                f"{arm} {accuracy:.1f}%"
                if many
                else f"{arm}{at}: loss {loss:.3f}, train acc {accuracy:.1f}%"
            )
    return ("train acc: " if len(record) > 4 else "") + "  ".join(words)
