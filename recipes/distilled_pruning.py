"""Masks from a few synthetic images: `python -m recipes.distilled_pruning --help`.

Iterative pruning trains a network again and again, only to learn which weights to prune. Here its
trainings see all real images (imp, rewound), or a few distilled ones (distilled N), or both in turn
(chained), beside as many real images (real N). Then every mask meets all real data: children of the
first weights train under it. The report gives their accuracy, their instability to the order of the
data, and the curvature of the loss, beside dense networks, shuffled masks and random ones (erk).

References: McDermott and Cummings, 2023, Distilled Pruning: Using Synthetic Data to Win the
Lottery; McDermott and Cummings, 2023, Linear Mode Connectivity in Sparse Neural Networks; McDermott
and Parhi, 2025, Finding Stable Subnetworks at Initialization with Dataset Distillation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes import distill
from recipes.common import cli, curvature, data, dead, flags, lanes, measures, sets, settings
from recipes.common.data import Key
from recipes.common.folder import RecipeError
from recipes.common.journal import At, Journal, journal
from recipes.common.lanes import Network
from recipes.common.measures import PathSettings, losses_on
from recipes.common.sets import Pupil, Sets
from recipes.reports import distilled_pruning as report
from recipes.stability import heights
from recipes.tickets import pruned

METHODS = ("imp", "rewound", "distilled", "chained", "real", "shuffled", "erk")
# the purposes of a seed's key, beyond those of recipes.distill
SHUFFLE, REAL, AUGMENT, CURVATURE, CHILD = range(distill.HERD + 1, distill.HERD + 6)


@dataclass(frozen=True)
class Config(PathSettings):
    """Masks from real and from distilled images: accuracy, stability and curvature."""

    out: Path = Path("runs/distilled_pruning")
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = METHODS
    """Where masks come from; distilled and real are an arm for each number of images a class."""
    images_per_class: Annotated[tuple[flags.Count, ...], flags.DISTINCT] = (10, 50)
    """The sizes of the sets to distill."""
    distilled: Annotated[tuple[Path, ...], flags.default("distill here")] = ()
    """Folders of recipes.distill, each with a set for every seed, in place of sets made here."""
    distillation: Annotated[str, flags.choice(distill.METHODS)] = "distribution"
    """What is matched to make the sets: see recipes.distill --method."""
    iterations: Annotated[int, flags.at_least(2)] = 1000
    """Steps of the distilled images."""
    real_batch: flags.Count = 64
    """Real images of each class in a step of the distilled images."""
    augment: Annotated[str, flags.choice(("siamese", "none"))] = "siamese"
    """Augment images while they are distilled, and while networks train on small sets."""
    flip: bool = False
    """Let the augmentation mirror images; not for digits."""
    set_steps: Annotated[int | None, flags.at_least(1), flags.default("as on real data")] = None
    """Training steps of a round on a small set."""

    sparsities: Annotated[tuple[flags.Fraction, ...], flags.DISTINCT] = (0.6, 0.8, 0.9, 0.95, 0.98)
    """The sparsities at which masks meet all real data."""
    rate: Annotated[float, flags.within("(0, 1)")] = 0.2
    """About the fraction of the weights left that a round prunes; whole rounds lead from one of
    --sparsities to the next."""
    rewind: Annotated[int | None, flags.at_least(0), flags.default("a twentieth of the steps")] = (
        None
    )
    """rewound: the step of the first training whose weights to rewind to."""
    stable_rounds: Annotated[int, flags.at_least(1)] = 4
    """chained: the rounds on the largest distilled set, before those on real data."""

    seeds: settings.Seeds = 3
    """The number of networks, each with first weights and distilled sets of its own."""
    children: Annotated[int, flags.at_least(2)] = 2
    """How often each network trains under a mask, each time in another order of the data."""
    steps: Annotated[int | None, flags.default("the steps of --epochs")] = 300
    """Training steps on real data, in place of epochs."""
    examples: flags.Count = 256
    """Measure curvature on this many training examples, the first ones."""
    probes: Annotated[int, flags.at_least(0)] = 20
    """Random vectors for the trace and the diagonal of a Hessian, and steps of Lanczos for its
    largest eigenvalue; 0 measures no curvature."""
    plane: Annotated[int, flags.odd(3)] = 21
    """Points along each side of a plane of losses."""
    evaluations: Annotated[int, flags.HIDDEN] = 1
    keep_best: Annotated[bool, flags.HIDDEN] = False

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if list(self.sparsities) != sorted(self.sparsities) or self.sparsities[0] == 0:
            seen = " ".join(f"{s:g}" for s in self.sparsities)
            yield f"--sparsities must rise, from above 0; got {seen}"
            return
        rounds = len(targets(self)[0])
        if "chained" in self.method and self.stable_rounds > rounds:
            yield (
                f"--stable-rounds {self.stable_rounds} is beyond the {rounds} rounds to the last "
                "of --sparsities; take fewer, or a lower --rate"
            )
        for control, of in (("shuffled", "imp"), ("chained", "distilled")):
            if control in self.method and of not in self.method:
                yield f"--method {control} needs {of} beside it: give both"
        if self.probes == 1:
            yield "--probes must be 0 or at least 2: one random vector has no standard error"
        if self.probes and self.norm == "batch" and self.model not in ("mlp", "lenet"):
            yield (
                "--norm batch has running statistics, which describe no network but that of the "
                "last step; choose --norm group, or no curvature by --probes 0"
            )
        if self.flip and self.dataset in ("digits", "mnist"):
            yield f"--flip makes other symbols of the digits of {self.dataset}; leave it out"


def distilled_pruning(config: Config) -> dict[str, Any]:
    """Distills, prunes, trains, writes `config.out`; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    s = study_of(config, dataset)
    with journal(config) as log:
        phase = partial(one_phase, config, s, log)
        settled = lanes.phases(log, 1 + len(s.targets), untried(config, s), phase)
        seconds = log.seconds()
    return report.write(config, s, dataset, settled, log.records, seconds)


# --- the method -----------------------------------------------------------------------------------


class Study(NamedTuple):
    """The values that all phases share."""

    program: lanes.Program  # on real data
    on_sets: dict[int, lanes.Program]  # by the number of images of a set
    keys: jax.Array  # (seeds,)
    classes: int
    arms: tuple[str, ...]
    given: dict[int, Sets]  # by images a class: sets that are not made here
    sizes: tuple[int, ...]  # stored images a class
    decoded: dict[int, int]  # images a class that networks see, by the stored ones
    distill: dict[int, tuple[distill.Config, distill.Study]]  # of sets that are made here
    transform: jp.MaskTransform  # the pruning of a round
    targets: list[float]  # the sparsity after each round
    measured: list[int]  # the rounds whose masks meet all real data, from 1
    steps: int
    set_steps: int
    rewind: int
    rates: jax.Array  # (steps,)
    set_rates: jax.Array  # (set_steps,)
    measure: measures.Measure
    losses: measures.Losses  # of planes and curvature

    @property
    def largest(self) -> str:
        """The arm of the largest distilled set."""
        return f"distilled {max(self.sizes)}"


class Settled(NamedTuple):
    """The state between rounds: stacks over seeds."""

    early: Network  # dense, at the step to rewind to
    dense: Network  # dense, at the end
    sets: dict[str, Sets]  # by arm
    masks: dict[str, Any]  # by arm
    children: dict[str, Network]  # by arm, of the last sparsity that was measured


def one_phase(
    config: Config, s: Study, log: Journal, number: int, settled: Settled
) -> tuple[Settled, dict[str, Any]]:
    """Trains dense networks and makes the sets; later one round, and what its masks come to."""
    record: dict[str, Any] = {"phase": number, "sparsity": 0.0}
    if number == 0:
        began = time.perf_counter()
        early, end = dense_networks(s, log)
        record["costs"] = {"dense": {"seconds": _since(began)}}
        settled = settled._replace(early=early, dense=end, sets=sets_of(s, log, record["costs"]))
        settled, record["arms"] = judged(config, s, log, settled, ("dense",))
        return settled, record | {"seconds": log.seconds()}
    masks: dict[str, Any] = {}
    record["costs"] = {}
    for arm in s.arms:
        began = time.perf_counter()
        masks[arm] = jax.block_until_ready(one_round(config, s, log, arm, number, settled, masks))
        images = images_of(config, s, settled, arm, number)
        record["costs"][arm] = {"images": images, "seconds": _since(began)}
    settled = settled._replace(masks=masks)
    record["sparsity"] = target = s.targets[number - 1]
    if number in s.measured:
        words = f" at {100 * target:g} %"
        settled, record["arms"] = judged(config, s, log, settled, s.arms, words)
    return settled, record | {"seconds": log.seconds()}


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 3)


def one_round(
    config: Config, s: Study, log: Journal, arm: str, number: int, settled: Settled, now: Any
) -> Any:
    """The masks of an arm after this round: train under those before, prune the smallest."""
    if arm == "erk":
        return random_masks(s.keys, settled.masks[arm], s.targets[number - 1])
    if arm == "shuffled":
        return shuffled(data.folded(s.keys, SHUFFLE), now["imp"])
    if arm == "chained" and number <= config.stable_rounds:
        return now[s.largest]
    start = beginning(s, settled, arm)
    first_training = number == 1 and arm in ("imp", "rewound")
    trained = settled.dense if first_training else search(s, log, arm, number, settled, start)
    index = jnp.int32(number - 1)
    return pruned(s.transform, trained.params, settled.masks[arm], index, start.params).masks


def images_of(config: Config, s: Study, settled: Settled, arm: str, number: int) -> int:
    """The training images that a round shows to a network of an arm, each as often as seen."""
    if arm in ("erk", "shuffled"):
        return 0
    if arm == "chained" and number <= config.stable_rounds:
        arm = s.largest
    if arm in settled.sets:
        return s.set_steps * s.on_sets[settled.sets[arm].examples].batch_size
    rewound = s.rewind if arm == "rewound" and number > 1 else 0
    return (s.steps - rewound) * s.program.batch_size


def search(
    s: Study, log: Journal, arm: str, number: int, settled: Settled, start: Network
) -> Network:
    """The networks that a round prunes: trained from the start under the masks so far."""
    name = f"{arm}, round {number}"
    if arm in settled.sets:
        of = settled.sets[arm]
        rates = jnp.tile(s.set_rates, (len(s.keys), 1))
        decay, key = jnp.zeros(len(s.keys)), data.folded(s.keys, AUGMENT)
        pupil = Pupil(s.keys, rates, decay, key, *of)
        return lanes.trained(log, name, s.on_sets[of.examples], start, pupil, s.set_steps)
    return on_real_data(s, log, name, arm, start, s.keys)


def on_real_data(
    s: Study, log: Journal, name: str, arm: str, start: Network, keys: jax.Array
) -> Network:
    """Networks trained to the end; after rewinding they see the examples from that step on."""
    first = s.rewind if arm == "rewound" else 0
    rates = jnp.pad(s.rates[first:], (0, first))
    lane = lanes.alike(keys, rates)
    return lanes.trained(log, name, s.program, start, lane, s.steps - first, first)


def beginning(s: Study, settled: Settled, arm: str) -> Network:
    """The weights that an arm starts from, under its masks."""
    network = settled.early if arm == "rewound" else lanes.initial(s.program, s.keys)
    masks = settled.masks.get(arm, network.masks)
    return network._replace(params=jp.apply_masks(network.params, masks), masks=masks)


@jax.jit
def random_masks(keys: jax.Array, masks: Any, sparsity: Any) -> Any:
    """Random masks, ERK; those of a higher sparsity lie in those of a lower one."""

    @jax.vmap
    def of_one(key: jax.Array, masks: Any) -> Any:
        scores = jp.random(jax.random.fold_in(key, Key.METHOD))(masks)
        return jp.select(scores, jp.erk, sparsity)

    return of_one(keys, masks)


@jax.jit
@jax.vmap
def shuffled(key: jax.Array, masks: Any) -> Any:
    """Masks with as many weights in each layer, in random places."""
    return jp.tickets.shuffle(key, masks)


# --- dense networks and sets ----------------------------------------------------------------------


def dense_networks(s: Study, log: Journal) -> tuple[Network, Network]:
    """Dense networks at the step to rewind to, and at the end."""
    lane, network = lanes.alike(s.keys, s.rates), lanes.initial(s.program, s.keys)

    def train(course: Any, start: int, at: At) -> Any:
        state, early = course
        for stop in (s.rewind, s.steps):
            if start < stop:
                between = lambda step, state, early=early: at(step, (state, early))
                state = lanes.train(s.program, state, lane, stop, between, start)
                start = stop
            if stop == s.rewind and start == stop:
                early = lanes.copied((state.params, state.batch_stats))
        return state, early

    state = lanes.begin(s.program, network, lane)
    course = state, lanes.copied((state.params, state.batch_stats))
    words = f"{len(s.keys)} networks"
    state, (params, batch_stats) = log.once("dense", s.steps, course, train, words)
    return Network(params, batch_stats, network.masks), state.network


def sets_of(s: Study, log: Journal, costs: dict[str, Any]) -> dict[str, Sets]:
    """The small set of each arm that trains on one; adds what it costs to make them."""
    made = {f"real {n}": some_real(s, n) for n in s.sizes if f"real {n}" in s.arms}
    for n in s.sizes:
        if f"distilled {n}" in s.arms:
            began = time.perf_counter()
            made[f"distilled {n}"] = s.given[n] if n in s.given else distilled(s, log, n)
            costs[f"distilled {n}"] = {"seconds": _since(began)}
    return made


def distilled(s: Study, log: Journal, n: int) -> Sets:
    """Sets of n distilled images a class."""
    config, study = s.distill[n]
    made = distill.distilled(config, study, log, f"distill {n}")
    return sets.of_classes(jp.distill.multi_formation(made.images, study.factor))


def some_real(s: Study, n: int) -> Sets:
    """Sets of n real images of each class by chance, other ones for each seed."""
    images = s.distill[n][1].by_class
    order = jax.vmap(lambda key: jax.random.permutation(key, images.shape[1]))
    rows = np.asarray(order(data.folded(s.keys, REAL)))[:, :n]
    return sets.of_classes(jnp.asarray(images[:, rows].swapaxes(0, 1)))


# --- what masks come to ---------------------------------------------------------------------------


def judged(
    config: Config,
    s: Study,
    log: Journal,
    settled: Settled,
    arms: Sequence[str],
    words: str = "",
) -> tuple[Settled, dict[str, Any]]:
    """Trains children under the masks of each arm on real data; what they come to, by arm."""
    ends, record = dict(settled.children), {}
    child = jax.vmap(lambda key, i: jax.random.fold_in(key, CHILD + i), in_axes=(None, 0))
    orders = jax.vmap(child, in_axes=(0, None))(s.keys, jnp.arange(config.children)).reshape(-1)
    for arm in arms:
        start = beginning(s, settled, arm)
        each = lanes.repeat(start, config.children)
        ends[arm] = on_real_data(s, log, f"children, {arm}{words}", arm, each, orders)
        families = lanes.split(ends[arm], -1, config.children)
        values = measures.between_siblings(s.measure, families.variables, config.points)
        record[arm] = heights({name: v[None] for name, v in values.items()}, 0, config.children)
        record[arm]["empty_layers"] = dead.empty_layers(start.masks)
        record[arm]["error_path"] = values["error"].mean((0, 1)).tolist()
        if arm in settled.masks and "imp" in settled.masks:
            both = settled.masks[arm], settled.masks["imp"]
            record[arm]["overlap_with_imp"] = np.asarray(jax.vmap(jp.overlap)(*both)).tolist()
        if config.probes:
            first = jax.tree.map(lambda x: x[:, 0], families)
            before = beginning(s, settled._replace(masks={}), arm).params
            keys = data.folded(s.keys, CURVATURE)
            of = partial(curvature.of_stack, keys, s.losses.loss, config.probes)
            record[arm]["start"], record[arm]["end"] = of(start, before), of(first, first.params)
    return settled._replace(children=ends), record


# --- what is asked for ----------------------------------------------------------------------------


def targets(config: Config) -> tuple[list[float], list[int]]:
    """The sparsity after each round, and the rounds, from 1, that end at one of --sparsities."""
    after, measured, left = [], [], 1.0
    for sparsity in config.sparsities:
        rounds = max(round(math.log((1 - sparsity) / left) / math.log(1 - config.rate)), 1)
        after += list(map(float, jp.tickets.sparsities(sparsity, rounds, 1 - left)))
        measured.append(len(after))
        left = 1 - sparsity
    return after, measured


def study_of(config: Config, dataset: data.Dataset) -> Study:
    """What all phases share; raises `RecipeError` where flags and data do not fit."""
    plan = settings.plan_of(config, len(dataset.train.labels))
    if config.examples > len(dataset.train.labels):
        most = len(dataset.train.labels)
        raise RecipeError(f"--examples {config.examples} is more than all {most:,} examples")
    rewind = plan.steps // 20 if config.rewind is None else config.rewind
    if rewind >= plan.steps:
        raise RecipeError(f"--rewind {rewind}: the first training has {plan.steps} steps")
    given = {}
    for path in config.distilled:
        loaded = sets.load(path, config.dataset, dataset, config.seeds)
        n = loaded.per_class(dataset.classes)
        if n in given:
            raise RecipeError(f"--distilled has two sets of {n} images a class; give one")
        given[n] = loaded
    sizes = tuple(given) if given else config.images_per_class
    of_sizes = {method: [f"{method} {n}" for n in sizes] for method in ("distilled", "real")}
    arms = tuple(arm for m in config.method for arm in of_sizes.get(m, [m]))
    module, set_steps = settings.module_of(config, dataset.classes), config.set_steps or plan.steps
    optimizer = settings.OPTIMIZERS[config.optimizer]
    by_lane = lambda lane: jp.sparsify(lanes.by_rates(optimizer, lane), jp.fixed(lanes.keep_all))
    needed = [n for n in sizes if n not in given or f"real {n}" in arms]
    studies = {n: to_distill(config, n, dataset) for n in needed}
    augment = distill.augmentation(config.augment, config.flip)
    decoded = {n: n if n in given else n * studies[n][1].factor ** 2 for n in sizes}
    after, measured = targets(config)
    return Study(
        program=lanes.program(module, by_lane, dataset.train, plan.batch_size, plan.chunk_steps),
        on_sets={
            n * dataset.classes: sets.program(
                module, by_lane, n * dataset.classes, plan.batch_size, plan.chunk_steps, augment
            )
            for n in {*sizes, *decoded.values()}
        },
        keys=lanes.seed_keys(config.seed, config.seeds),
        classes=dataset.classes,
        arms=arms,
        given=given,
        sizes=sizes,
        decoded=decoded,
        distill=studies,
        transform=by_rounds(after),
        targets=after,
        measured=measured,
        steps=plan.steps,
        set_steps=set_steps,
        rewind=rewind,
        rates=lanes.table(settings.rates(config, plan.steps), plan.steps),
        set_rates=lanes.table(settings.rates(config, set_steps), set_steps),
        measure=measures.measure_of(config, module, dataset),
        losses=losses_on(module, dataset.train, config.examples),
    )


def by_rounds(after: Sequence[float]) -> jp.MaskTransform:
    """The pruning of a round: the smallest of all weights together."""
    table = jnp.asarray(after, jnp.float32)
    return jp.prune(jp.magnitude, jp.global_threshold, lambda number: table[number])


def to_distill(
    config: Config, n: int, dataset: data.Dataset
) -> tuple[distill.Config, distill.Study]:
    """How recipes.distill makes the sets of n images a class; the study has the real images."""
    shared = {field.name: getattr(config, field.name) for field in fields(settings.Settings)}
    asked = {
        name: getattr(config, name) for name in ("iterations", "real_batch", "augment", "flip")
    }
    made = distill.Config(
        **(shared | {"steps": 2}),
        **asked,
        method=config.distillation,
        images_per_class=n,
    )
    return made, distill.study_of(made, dataset)


def untried(config: Config, s: Study) -> Settled:
    """Before the first phase: all states have its structure."""
    network, made = lanes.initial(s.program, s.keys), {}
    shape = s.program.data.images.shape[1:]
    for n in s.sizes:
        for arm, each in ((f"distilled {n}", s.decoded[n]), (f"real {n}", n)):
            if arm in s.arms:
                made[arm] = sets.of_classes(jnp.zeros((config.seeds, s.classes, each, *shape)))
    ends = dict.fromkeys(("dense", *s.arms), lanes.repeat(network, config.children))
    return Settled(network, network, made, dict.fromkeys(s.arms, network.masks), ends)


main = cli.command(Config, distilled_pruning)

if __name__ == "__main__":
    main()
