"""Structured pruning by scores of neurons: `python -m recipes.structured --help`.

Trains a few networks and finds their groups of neurons once. Then round by round each arm scores
the neurons of its networks, prunes the lowest until a share of the FLOPs is left, and trains on;
beside them the dense networks train as long. At each target the neurons are really removed: the
table shows weights, FLOPs, measured latency and accuracy before and after. Writes a folder that
reproduces itself.

References: Fang et al., 2023 (DepGraph); Li et al., 2017 (L1 norms); Molchanov et al., 2019
(Taylor); Liu et al., 2017 (scales of batch norm); He et al., 2019 (geometric median); Wang et al.,
2024 (OBSPA, --update).
"""

from __future__ import annotations

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
from jaxprune.structured import Compact, Structure
from recipes.common import cli, data, flags, folder, lanes, measures, models, settings, small
from recipes.common.data import Dataset, Key, Split
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Network
from recipes.reports import structured as report
from recipes.reports.structured import DENSE, model_path

# the score of a neuron, and the neurons that it is ranked among: all, its group, or groups alike
SCORES = {
    "l1": lambda structure, key: jp.structured.per_group(structure),
    "l2": lambda structure, key: jp.structured.per_group(structure, jp.structured.square),
    "taylor": lambda structure, key: jp.structured.per_group(structure, jp.saliency),
    "scale": lambda structure, key: jp.structured.per_group(
        structure, prunable=jp.matching("*/scale")
    ),
    "median": lambda structure, key: jp.structured.geometric_median(structure),
    "random": lambda structure, key: jp.structured.random(key, structure),
}
CALIBRATED = {"obspa": jp.calibration.obspa_scores, "activations": jp.calibration.activation_norms}
SCOPES = {
    "global": lambda structure: jp.global_threshold,
    "local": lambda structure: jp.uniform,
    "isomorphic": jp.structured.isomorphic,
}
UPDATES = ("none", "data", "noise")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Structured pruning by scores of neurons, several seeds and scores in one program."""

    out: Path = Path("runs/structured")
    norm: Annotated[str, flags.choice(models.NORMS)] = "batch"
    """Normalization of the convolutional networks; group ties channels of its groups together."""
    seeds: settings.Seeds = 3
    """The number of networks to prune, each with other initial weights."""
    score: Annotated[tuple[str, ...], flags.choice((*SCORES, *CALIBRATED)), flags.DISTINCT] = (
        "l1",
        "taylor",
        "random",
    )
    """The score of a neuron: one or several, side by side. scale needs a network with norms; obspa
    and activations read what the neurons give for training examples."""
    scope: Annotated[str, flags.choice(SCOPES)] = "global"
    """The neurons that a neuron is ranked among: all, its group, or the groups of like layers."""
    flops: Annotated[tuple[float, ...], flags.within("(0, 1)"), flags.DISTINCT] = (0.5, 0.25)
    """The shares of the dense FLOPs to prune to; each continues from the one before."""
    rounds: flags.Count = 2
    """Rounds of pruning and training from each share to the next."""
    retrain: Annotated[float, flags.within("(0, 100]")] = 0.2
    """The length of a round's training, as a fraction of the steps of training."""
    retrain_rate: Annotated[
        float | None, flags.within("(0, inf)"), flags.default("the --learning-rate")
    ] = None
    """The highest learning rate of a round; it follows --schedule anew."""
    weight_decay: flags.NotNegative = 0.0
    """This times the weights is added to the gradient."""
    round_to: flags.Count = 1
    """The number of kept neurons of a layer is a multiple of this."""
    update: Annotated[str, flags.choice(UPDATES)] = "none"
    """OBSPA: weights that read pruned neurons make up for them, by training examples or noise."""
    examples: flags.Count = 1024
    """taylor, obspa, activations, --update: how many training examples, or images of noise."""
    timings: Annotated[int, flags.at_least(0)] = 9
    """How often each forward pass is timed; 0 for never."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested after each round

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if list(self.flops) != sorted(self.flops, reverse=True):
            seen = " ".join(f"{share:g}" for share in self.flops)
            yield f"--flops must fall, for what is pruned stays pruned; got {seen}"


# --- the method -----------------------------------------------------------------------------------


def pick(s: Study, share: float, scores: Any, before: Any) -> dict[str, Any]:
    """The neurons of one network with the highest scores that the share of the FLOPs pays for."""
    try:
        kept = jp.pick(s.structure, scores, None, s.allocation, flops=share, round_to=s.round_to)
    except ValueError as error:
        raise RecipeError(f"--flops: {' '.join(str(error).split())}") from error
    return {group: mask & before[group] for group, mask in kept.items()}  # pruned stays pruned


def optimizer_of(config: Config, structure: Structure) -> Any:
    """A lane trains by its rates and its weight decay; what is pruned stays zero."""
    optimizer = settings.OPTIMIZERS[config.optimizer]
    masks = jp.structured.masks(structure, {})["params"]  # of biases and norms too
    return lambda lane: jp.sparsify(lanes.by_rates(optimizer, lane), jp.fixed(masks))


def mean_loss(module: Any, examples: Split, batch_size: int) -> Callable[[Any], jax.Array]:
    """The mean cross-entropy in evaluation mode, in batches; what fills no batch is left out."""
    n = min(batch_size, len(examples.labels))
    full = len(examples.labels) // n
    batches = Split(*(x[: full * n].reshape(full, n, *x.shape[1:]) for x in examples))

    def loss(variables: Any, batch: Split) -> jax.Array:
        logits: Any = module.apply(variables, batch.images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

    return jp.analysis.over_batches(loss, jax.device_put(batches))


# (a stack of variables, the kept neurons of each, keys) -> {group: (lanes, size)}
Scored = Callable[[Any, dict[str, jax.Array], jax.Array], dict[str, jax.Array]]


def scorer(
    name: str, structure: Structure, loss: Callable[[Any], jax.Array], images: jax.Array
) -> Scored:
    """The score called `name`, with the mean 1 over the kept neurons of a group; -inf for others.

    Raises `RecipeError` if it can't score these networks.
    """

    def over_mean(scores: jax.Array, kept: jax.Array) -> jax.Array:
        mean = jnp.sum(jnp.where(kept, scores, 0)) / jnp.maximum(jnp.sum(kept, dtype=jnp.int32), 1)
        scaled = scores / jnp.maximum(mean, jnp.finfo(scores.dtype).tiny)
        return jnp.where(kept, scaled, -jnp.inf)

    if name in CALIBRATED:

        def calibrated(stack: Any, kept: Any, keys: jax.Array) -> dict[str, jax.Array]:
            of_one = lambda i: CALIBRATED[name](structure, lanes.lane_of(stack, i), [images])
            scores = lanes.stacked(map(of_one, range(len(keys))))
            return {g: jax.vmap(over_mean)(s, kept[g]) for g, s in scores.items()}

        return calibrated

    def of_one(variables: Any, kept: Any, key: jax.Array, loss: Any) -> dict[str, jax.Array]:
        grads = jax.grad(loss)(variables) if name == "taylor" else None
        scores = SCORES[name](structure, key)(variables, grads=grads)
        return {group: over_mean(s, kept[group]) for group, s in scores.items()}

    try:
        every = {group: jnp.ones(neurons.size, bool) for group, neurons in structure.groups.items()}
        jax.eval_shape(of_one, structure.shapes, every, jax.random.key(0), loss)
    except ValueError as error:
        raise RecipeError(f"--score {name}: {' '.join(str(error).split())}") from error
    scored = jax.jit(jax.vmap(of_one, in_axes=(0, 0, 0, None)))
    return lambda stack, kept, keys: scored(stack, kept, keys, loss)


def shares_of(targets: Sequence[float], rounds: int) -> list[float]:
    """From 1 to each target in so many rounds, each of which leaves the same fraction."""
    shares, before = [], 1.0
    for target in targets:
        shares += [before * (target / before) ** (i / rounds) for i in range(1, rounds)]
        shares.append(before := target)
    return shares


# --- the rounds -----------------------------------------------------------------------------------


def structured_pruning(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    study = study_of(config, dataset)
    alike = {name: np.ones(group.size) for name, group in study.structure.groups.items()}
    pick(study, min(study.targets), alike, {name: s > 0 for name, s in alike.items()})  # or raise
    with journal(config) as kept:
        first = lanes.tile(untrained(study), len(study.arms))
        round_ = partial(one_round, study, dataset, config.out, kept)
        lanes.phases(kept, 1 + len(study.shares), first, round_)
    return report.write(config, study, kept.records, dataset)


class Networks(NamedTuple):
    """What goes from round to round: arms after each other, the seeds of each side by side."""

    network: Network
    kept: tuple[jax.Array, ...]  # neurons, bool (lanes, size), in the order of the groups


def untrained(s: Study) -> Networks:
    """A network for each seed, with the weights of all recipes."""
    network = lanes.initial(s.program, s.keys)
    kept = [jnp.ones((len(s.keys), group.size), bool) for group in s.structure.groups.values()]
    return Networks(network._replace(masks=s.masks(small.by_group(s.structure, kept))), tuple(kept))


def one_round(
    s: Study, dataset: Dataset, out: Path, journal: Journal, index: int, networks: Networks
) -> tuple[Networks, dict[str, Any]]:
    """Trains dense networks; later prunes every arm but the dense one, and trains on."""
    record: dict[str, Any]
    n, first = len(s.keys), s.steps + (index - 1) * s.more
    if index == 0:
        dense = lanes.part(networks, 0, n)
        trained = lanes.trained(journal, "dense", s.program, dense.network, s.lane, s.steps)
        record = {"round": 0, "step": s.steps}
        record[DENSE] = {"test_accuracy": s.test(trained.variables).tolist()}
        networks = lanes.tile(dense._replace(network=trained), len(s.arms))
        return networks, record | {"seconds": journal.seconds()}

    share = s.shares[index - 1]
    networks = pruned(s, networks, share, index - 1)
    at_once = s.test(networks.network.variables)
    name = f"round {index} of {len(s.shares)}, {100 * share:.3g} % of the FLOPs"
    trained = lanes.trained(journal, name, s.program, networks.network, s.more_lane, s.more, first)
    accuracy, masks = s.test(trained.variables), [np.asarray(kept) for kept in networks.kept]
    record = {"round": index, "step": first + s.more, "flops_asked": share}
    for i, arm in enumerate(s.arms):
        seeds = range(i * n, (i + 1) * n)
        record[arm] = {
            "before_training_on": at_once[seeds].tolist(),
            "test_accuracy": accuracy[seeds].tolist(),
        }
        if arm != DENSE:
            kept = [small.by_group(s.structure, lanes.lane_of(masks, k)) for k in seeds]
            record[arm] |= report.sizes(s, kept)
            if share in s.targets:
                variables = [lanes.lane_of(trained.variables, k) for k in seeds]
                record[arm] |= removed(s, variables, kept, dataset, out / model_path(arm, share))
    return networks._replace(network=trained), record | {"seconds": journal.seconds()}


def pruned(s: Study, networks: Networks, share: float, index: int) -> Networks:
    """Each score's networks without their lowest neurons; the first arm, of no score, as it is."""
    n, before = len(s.keys), small.by_group(s.structure, networks.kept)
    arms = [lanes.part(before, 0, n)]
    keys = data.folded(data.folded(s.keys, Key.STUDY + 1), index)
    for i, score in enumerate(s.scores.values(), 1):
        variables, mine = lanes.part((networks.network.variables, before), i * n, (i + 1) * n)
        scored = score(variables, mine, keys), mine
        picked = [pick(s, share, *lanes.lane_of(scored, k)) for k in range(n)]
        arms.append(lanes.stacked(picked))
    kept = lanes.join(*arms)
    masks = s.masks(kept)
    params = jp.apply_masks(networks.network.params, masks)
    if s.inputs is not None:
        of_lane = partial(lanes.lane_of, (networks.network.variables, kept))
        scored = lanes.stacked(updated(s, *of_lane(k)) for k in range(n, n * len(s.arms)))
        params = lanes.join(lanes.part(params, 0, n), scored)
    network = networks.network._replace(params=params, masks=masks)
    return Networks(network, tuple(kept[name] for name in s.structure.groups))


def updated(s: Study, variables: Any, kept: Any) -> Any:
    """The params of one network, whose weights make up for the neurons that are pruned."""
    return jp.calibration.obspa(s.structure, variables, kept, [s.inputs])["params"]


def removed(
    s: Study, variables: Sequence[Any], kept: Sequence[Any], dataset: Dataset, path: Path
) -> dict[str, list[Any]]:
    """Compacts and saves the networks of an arm; how they differ from the masked ones."""
    folder.remove(path)  # of a round that was stopped
    compacted = [jp.compact(s.structure, *pair) for pair in zip(variables, kept, strict=True)]
    seeds = [(masks, one.params) for masks, one in zip(kept, compacted, strict=True)]
    small.save(path, s.network, dataset.train.images.shape[1:], seeds)
    masked = [Compact(own, s.program.module.apply) for own in variables]
    pairs = zip(masked, compacted, strict=True)
    told = [small.compare(*pair, dataset.test) for pair in pairs]
    return {key: [numbers[key] for numbers in told] for key in told[0]}


class Study(NamedTuple):
    """What all rounds share."""

    network: Mapping[str, Any]  # what `models.model` was called with
    structure: Structure
    program: lanes.Program
    masks: Callable[[Any], Any]  # the kept neurons of a stack -> masks of its params
    keys: jax.Array  # (seeds,)
    scores: Mapping[str, Scored]
    allocation: Any
    round_to: int
    targets: Sequence[float]  # of FLOPs, falling
    shares: Sequence[float]  # the share of the FLOPs after each round; the targets are among them
    steps: int  # of training
    more: int  # and of each round
    lane: lanes.Lane  # how dense networks train (seeds,)
    more_lane: lanes.Lane  # and all networks, in each round
    test: measures.Accuracy
    inputs: Any  # images that --update reads, or None

    @property
    def arms(self) -> tuple[str, ...]:
        """Dense networks, and those of each score."""
        return DENSE, *self.scores


def study_of(config: Config, dataset: Dataset) -> Study:
    """The programs of all rounds; raises `RecipeError` for what can't be scored."""
    network, module = small.network_of(config, dataset)
    structure = jp.analyze(module.apply, *small.shapes_of(module, dataset.train.images.shape[1:]))
    plan = settings.plan_of(config, len(dataset.train.labels))
    more = max(round(config.retrain * plan.steps), 1)
    table = partial(lanes.table, length=max(plan.steps, more))
    rate = config.learning_rate if config.retrain_rate is None else config.retrain_rate
    again = settings.SCHEDULES[config.schedule](rate, more)
    optimizer, decay = optimizer_of(config, structure), config.weight_decay
    keys = lanes.seed_keys(config.seed, config.seeds)
    examples = Split(*(x[: config.examples] for x in dataset.train))
    loss = mean_loss(module, examples, config.batch_size)
    return Study(
        network=network,
        structure=structure,
        program=lanes.program(
            module, optimizer, dataset.train, config.batch_size, plan.chunk_steps
        ),
        masks=jax.jit(jax.vmap(lambda kept: jp.structured.masks(structure, kept)["params"])),
        keys=keys,
        scores={n: scorer(n, structure, loss, jnp.asarray(examples.images)) for n in config.score},
        allocation=SCOPES[config.scope](structure),
        round_to=config.round_to,
        targets=config.flops,
        shares=shares_of(config.flops, config.rounds),
        steps=plan.steps,
        more=more,
        lane=lanes.alike(keys, table(settings.rates(config, plan.steps), plan.steps), decay),
        more_lane=lanes.alike(lanes.tile(keys, 1 + len(config.score)), table(again, more), decay),
        test=measures.accuracy(module, dataset.test),
        inputs=inputs_of(config, examples.images),
    )


def inputs_of(config: Config, images: Any) -> jax.Array | None:
    """The images that --update reads: of the training, or noise of their mean and deviation."""
    if config.update == "none":
        return None
    images = jnp.asarray(images)
    if config.update == "data":
        return images
    key = jax.random.fold_in(jax.random.key(config.seed), Key.STUDY)
    noise = jax.random.normal(key, images.shape, images.dtype)
    return images.mean() + images.std() * noise


main = cli.command(Config, structured_pruning)

if __name__ == "__main__":
    main()
