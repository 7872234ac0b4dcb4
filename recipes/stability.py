"""When does training become stable to the noise of SGD: `python -m recipes.stability --help`.

Trains a few networks (trunks). At each fork several children of each go on to the end, dense and
pruned, from the identical state at the same position of the schedule; they differ only in the order
of their data. Plots by how much the test error rises in a straight line between two children.

Reference: Frankle et al., 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import checkpoints, cli, data, dead, flags, lanes, measures, sets, settings
from recipes.common.data import Key
from recipes.common.folder import RecipeError
from recipes.common.journal import At, Journal, journal
from recipes.common.lanes import Lane, Network, State
from recipes.common.measures import PathSettings
from recipes.reports import stability as report
from recipes.reports.stability import ARMS
from recipes.tickets import pruned

MASKS = ("magnitude", "random", "imp", "distilled")  # or a folder
RATE = 0.2  # about what a round of iterative magnitude pruning prunes of the weights left
FORKS = (0.0, 0.02, 0.1, 0.4)  # unless given: these fractions of the steps


@dataclass(frozen=True)
class Config(PathSettings):
    """Instability against the step of the fork, for dense and for pruned networks."""

    out: Path = Path("runs/stability")
    seeds: settings.Seeds = 3
    """The number of networks to fork, each with other initial weights."""
    children: Annotated[int, flags.at_least(2)] = 3
    """The number of children of each network at each fork."""
    forks: Annotated[tuple[int, ...], flags.default("0, 2, 10 and 40 % of the steps")] = ()
    """The steps at which to fork."""
    sparsity: flags.Fraction = 0.8
    """The fraction of weights that are pruned in the sparse children; unused with a folder."""
    mask: Annotated[str, flags.choice(MASKS, "the folder of a saved run or model")] = "magnitude"
    """The masks of sparse children: the largest weights of the finished trunk (magnitude), random
    ones (ERK), those of iterative magnitude pruning from the first weights (imp), the same with
    trainings on distilled images (distilled), or the folder of a saved run or model, whose network
    i gives the masks of trunk i."""
    distilled: Annotated[Path | None, flags.default("no folder")] = None
    """--mask distilled: the folder of recipes.distill, whose set i gives the masks of trunk i."""
    rounds: Annotated[
        int | None, flags.at_least(1), flags.default("each prunes about 20 % of the weights left")
    ] = None
    """Rounds of --mask imp or distilled; each trains from the first weights to the end."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # children are tested at the end

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if list(self.forks) != sorted(set(self.forks)) or min(self.forks, default=0) < 0:
            seen = " ".join(map(str, self.forks))
            yield f"--forks must rise, from 0 or more; got {seen}"
        if self.rounds and self.mask not in ("imp", "distilled"):
            yield f"--rounds belongs to --mask imp or distilled; got --mask {self.mask}"
        if (self.mask == "distilled") != bool(self.distilled):
            yield (
                "--mask distilled and --distilled DIR belong together: DIR is the folder of a run "
                "of python -m recipes.distill"
            )


def stability(config: Config) -> dict[str, Any]:
    """Trains, forks, writes the folder `config.out`; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    study = study_of(config, dataset)
    began = time.perf_counter()
    with journal(config) as kept:
        phase = partial(one_phase, config, study, kept)
        trunks = lanes.phases(kept, 1 + len(study.forks), untrained(study), phase)
    seconds = time.perf_counter() - began
    rule = measures.rule(config, study.program.module, dataset.train.images)
    chance = dead.chance(dataset.test.labels[: config.test_examples])
    return report.write(config, trunks.end, kept.records, study.steps, rule, seconds, chance)


# --- the method -----------------------------------------------------------------------------------


class Study(NamedTuple):
    """The values that all phases share."""

    program: lanes.Program
    keys: jax.Array  # of the trunks (seeds,)
    forks: list[int]
    steps: int
    measure: measures.Measure  # of what lies between children
    saved: Any  # the masks of a folder (seeds, ...), or None
    on_sets: tuple[lanes.Program, sets.Pupil] | None  # how rounds train on distilled images


class Trunks(NamedTuple):
    """The networks to fork, stacks over seeds."""

    at: dict[str, State]  # by the step of the fork
    end: Network  # trained to the end, under the masks of the sparse children


def study_of(config: Config, dataset: data.Dataset) -> Study:
    """What all phases share; raises `RecipeError` where the data are too few."""
    plan = settings.plan_of(config, len(dataset.train.labels))
    module = settings.module_of(config, dataset.classes)
    # dense networks train under masks that keep all: then all children are lanes of one program
    tx = jp.sparsify(settings.optimizer(config, plan.steps), jp.fixed(lanes.keep_all))
    program = lanes.program(
        module, lambda lane: tx, dataset.train, config.batch_size, plan.chunk_steps
    )
    keys, saved, on_sets = lanes.seed_keys(config.seed, config.seeds), None, None
    if config.distilled:
        loaded = sets.load(config.distilled, config.dataset, dataset, config.seeds)
        pupil = sets.Pupil(keys, images=loaded.images, labels=loaded.labels)
        sizes = loaded.examples, plan.batch_size, plan.chunk_steps
        on_sets = sets.program(module, lambda lane: tx, *sizes), pupil
    if config.mask not in MASKS:
        saved = checkpoints.load_masks(Path(config.mask), lanes.initial(program, keys).masks)
    return Study(
        program=program,
        keys=keys,
        forks=forks_of(config, plan.steps),
        steps=plan.steps,
        measure=measures.measure_of(config, module, dataset),
        saved=saved,
        on_sets=on_sets,
    )


def untrained(s: Study) -> Trunks:
    """Trunks at step 0."""
    network = lanes.initial(s.program, s.keys)
    first = lanes.begin(s.program, network, Lane(s.keys))
    return Trunks({str(fork): lanes.copied(first) for fork in s.forks}, network)


def one_phase(
    config: Config, s: Study, journal: Journal, phase: int, trunks: Trunks
) -> tuple[Trunks, dict[str, Any] | None]:
    """Trains the trunks, and logs nothing; later trains the children of each fork."""
    if phase == 0:
        return grow(config, s, journal), None
    return trunks, compare(config, s, journal, s.forks[phase - 1], trunks)


def grow(config: Config, s: Study, journal: Journal) -> Trunks:
    """The trunks as they were at each fork, and at the end."""

    def train(course: Any, start: int, at: At) -> Any:
        state, stored = course
        for fork in sorted({*s.forks, s.steps}):
            if fork < start:
                continue
            between = lambda step, state, stored=stored: at(step, (state, stored))
            state = lanes.train(s.program, state, Lane(s.keys), fork, between, start)
            start = fork
            if fork in s.forks:
                stored = {**stored, str(fork): lanes.copied(state)}
        return state, stored

    stored, network = untrained(s)
    course = lanes.begin(s.program, network, Lane(s.keys)), stored
    state, stored = journal.once("trunks", s.steps, course, train, f"{config.seeds} networks")
    return Trunks(stored, state.network._replace(masks=sparse_masks(config, s, journal, state)))


def sparse_masks(config: Config, s: Study, journal: Journal, trained: State) -> Any:
    """The masks of each trunk's sparse children."""
    if s.saved is not None:
        return s.saved
    if config.mask in ("imp", "distilled"):
        return by_rounds(config, s, journal, trained)

    @jax.jit
    @jax.vmap
    def masks(key, params):
        kernels = jp.kernels(params)
        if config.mask == "magnitude":  # a lottery ticket of one round
            return jp.select(jp.magnitude(kernels), jp.global_threshold, config.sparsity)
        scores = jp.random(jax.random.fold_in(key, Key.METHOD))(kernels)
        return jp.select(scores, jp.erk, config.sparsity)

    return masks(s.keys, trained.params)


def by_rounds(config: Config, s: Study, journal: Journal, trained: State) -> Any:
    """The masks of iterative magnitude pruning: prune, rewind to the first weights, train again.

    Of imp the trunk is the first training. Nothing trains after the last prune.
    """
    rounds = config.rounds or max(round(math.log(1 - config.sparsity) / math.log(1 - RATE)), 1)
    by_round = jp.tickets.schedule(config.sparsity, rounds)
    transform = jp.prune(jp.magnitude, jp.global_threshold, by_round)
    program, lane = s.on_sets or (s.program, Lane(s.keys))

    network = first = lanes.initial(s.program, s.keys)
    params = trained.params
    for number in range(rounds):
        if number or s.on_sets:
            name = f"round {number + 1} of {rounds}"
            params = lanes.trained(journal, name, program, network, lane, s.steps).params
        phase = pruned(transform, params, network.masks, jnp.int32(number), first.params)
        network = first._replace(params=phase.params, masks=phase.masks)
    return network.masks


def fork(s: Study, state: State, masks: Any, children: int) -> tuple[State, Lane]:
    """Children (arms * seeds * children,) of trunks (seeds,): dense ones, then those under masks.

    A child has the weights, moments and counts of its trunk. Dense and sparse ones have the same
    orders of their examples.
    """
    masks = lanes.repeat(masks, children)
    both = lanes.join(jax.tree.map(jnp.ones_like, masks), masks)
    state = lanes.under(lanes.tile(lanes.repeat(state, children), len(ARMS)), both)
    noise = jax.vmap(lambda key, i: jax.random.fold_in(key, Key.STUDY + i), in_axes=(None, 0))
    keys = jax.vmap(noise, in_axes=(0, None))(s.keys, jnp.arange(children)).reshape(-1)
    return state, Lane(lanes.tile(keys, len(ARMS)))


# --- what is measured -----------------------------------------------------------------------------


def compare(
    config: Config, s: Study, journal: Journal, step: int, trunks: Trunks
) -> dict[str, Any]:
    """Trains the children of the fork at this step; how far apart they are."""
    began = time.perf_counter()
    first, lane = fork(s, trunks.at[str(step)], trunks.end.masks, config.children)

    def train(state: State, start: int, at: At) -> State:
        between = lambda now, state: at(now - step, state)
        return lanes.train(s.program, state, lane, s.steps, between, step + start)

    words = f"{len(lane.order)} networks"
    children = journal.once(f"fork at {step:,}", s.steps - step, first, train, words)
    values = between_siblings(s, children, config.children, config.points)
    record: dict[str, Any] = {"step": step, "seconds": round(time.perf_counter() - began, 2)}
    return record | {arm: heights(values, i, config.children) for i, arm in enumerate(ARMS)}


def between_siblings(s: Study, state: State, children: int, points: int) -> dict[str, np.ndarray]:
    """Errors and losses along the paths between siblings: (arms, seeds, pairs, points).

    A path leads from the earlier child to the later; pairs are in the order of `np.triu_indices`.
    """
    families = lanes.split(state.network.variables, -1, children)
    stacked = measures.between_siblings(s.measure, families, points)
    return {
        name: v.reshape(len(ARMS), -1, *v.shape[1:]).astype(np.float64)
        for name, v in stacked.items()
    }


def heights(values: dict[str, np.ndarray], arm: int, children: int) -> dict[str, Any]:
    """`between_siblings` of one arm: lists (seeds, pairs) and (seeds, children)."""
    record: dict[str, Any] = {}
    for name in values:
        paths = values[name][arm]  # (seeds, pairs, points)
        record[f"{name}_instability"] = measures.above_ends(paths).tolist()
        record[f"{name}_barrier"] = measures.above_chord(paths).tolist()
        # the pairs of the first child come first: the first ends of one, the last ends of the rest
        ends = np.concatenate([paths[:, :1, 0], paths[:, : children - 1, -1]], axis=1)
        record[f"test_{name}"] = ends.tolist()
    return record


# --- what is asked for ----------------------------------------------------------------------------


def forks_of(config: Config, steps: int | None) -> list[int]:
    """The steps at which to fork; raises `RecipeError`."""
    forks = list(config.forks) or sorted({round(part * (steps or 0)) for part in FORKS})
    if forks != sorted(set(forks)) or forks[0] < 0:
        seen = " ".join(map(str, forks))
        raise RecipeError(f"--forks must rise, from 0 or more; got {seen}")
    if steps is not None and forks[-1] > steps:
        raise RecipeError(f"--forks must be at most the {steps} steps; got {forks[-1]}")
    return forks


main = cli.command(Config, stability)

if __name__ == "__main__":
    main()
