"""Structured pruning by scores of neurons: `python -m recipes.structured --help`.

Trains a few networks and finds their groups of neurons once. Then round by round each arm scores
the neurons of its networks, prunes the lowest until a share of the FLOPs is left, and trains on;
beside them the dense networks train as long. At each target the neurons are really removed: the
table shows weights, FLOPs, measured latency and accuracy before and after. Writes a folder that
reproduces itself.

References: Fang et al., 2023 (DepGraph); Li et al., 2017 (L1 norms); Molchanov et al., 2019
(Taylor); Liu et al., 2017 (scales of batch norm); He et al., 2019 (geometric median).
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
from recipes.common import cli, data, dead, flags, folder, lanes, measures, models, settings, small
from recipes.common.data import Dataset, Split
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Network
from recipes.reports import structured as report
from recipes.reports.structured import DENSE, model_path

SCORES = ("l1", "l2", "taylor", "scale", "median", "random")
SCOPES = ("global", "local", "isomorphic")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Structured pruning by scores of neurons, several seeds and scores in one program."""

    out: Path = Path("runs/structured")
    norm: Annotated[str, flags.choice(models.NORMS)] = "batch"
    """Normalization of the convolutional networks; group ties channels of its groups together."""
    seeds: Annotated[int, flags.at_least(1, settings.MOST_SEEDS)] = 3
    """The number of networks to prune, each with other initial weights."""
    score: Annotated[tuple[str, ...], flags.choice(SCORES), flags.DISTINCT] = (
        "l1",
        "taylor",
        "random",
    )
    """The score of a neuron: one or several, side by side. scale needs a network with norms."""
    scope: Annotated[str, flags.choice(SCOPES)] = "global"
    """The neurons that a neuron is ranked among: all, its group, or the groups of like layers."""
    flops: Annotated[tuple[float, ...], flags.within("(0, 1)"), flags.DISTINCT] = (0.5, 0.25)
    """The shares of the dense FLOPs to prune to; each continues from the one before."""
    rounds: Annotated[int, flags.at_least(1)] = 2
    """Rounds of pruning and training from each share to the next."""
    retrain: Annotated[float, flags.within("(0, 100]")] = 0.2
    """The length of a round's training, as a fraction of the steps of training."""
    retrain_rate: Annotated[
        float | None, flags.within("(0, inf)"), flags.default("the --learning-rate")
    ] = None
    """The highest learning rate of a round; it follows --schedule anew."""
    weight_decay: Annotated[float, flags.within("[0, inf)")] = 0.0
    """This times the weights is added to the gradient."""
    round_to: Annotated[int, flags.at_least(1)] = 1
    """The number of kept neurons of a layer is a multiple of this."""
    examples: Annotated[int, flags.at_least(1)] = 1024
    """taylor: training examples of the gradient."""
    timings: Annotated[int, flags.at_least(0)] = 9
    """How often each forward pass is timed; 0 for never."""
    log_every: Annotated[
        int | None, flags.at_least(1), flags.default("mlp, lenet 20, conv 5, resnet20 1")
    ] = None
    """Steps between updates of the progress bar, and between points where Ctrl-C can stop."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested after each round

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if list(self.flops) != sorted(self.flops, reverse=True):
            seen = " ".join(f"{share:g}" for share in self.flops)
            yield f"--flops must fall, for what is pruned stays pruned; got {seen}"


def structured_pruning(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    folder.check_out(config.out, config.overwrite, config.resume)
    dataset = data.load(config.dataset, config.data_dir, config.train_examples)
    study = study_of(config, dataset)
    check_budget(study)
    with journal(config) as kept:
        first = lanes.tile(untrained(study), len(study.arms))
        round_ = partial(one_round, study, dataset, config.out, kept)
        lanes.phases(kept, 1 + len(study.shares), first, round_)
    chance = dead.chance(dataset.test.labels)
    return report.write(config, study, kept.records, dataset, chance)


# --- the method -----------------------------------------------------------------------------------


def optimizer_of(config: Config, structure: Structure) -> Any:
    """How a lane trains: by its rates and its weight decay; what is pruned stays zero."""
    optimizer = settings.OPTIMIZERS[config.optimizer]
    # biases and norms of neurons have masks too
    everything = jp.structured.masks(structure, {})["params"]
    return lambda lane: jp.sparsify(lanes.by_rates(optimizer, lane), jp.fixed(everything))


def score_of(name: str, key: jax.Array, structure: Structure) -> Any:
    """(variables, grads) -> what each neuron is worth, {group: (size,)}.

    References: Li et al., 2017 (l1); Molchanov et al., 2019 (taylor); Liu et al., 2017 (scale); He
    et al., 2019 (median); Fang et al., 2023 (sums over all that a neuron is on, and their mean).
    """
    return {
        "l1": lambda: jp.structured.per_group(structure),
        "l2": lambda: jp.structured.per_group(structure, jp.structured.square),
        "taylor": lambda: jp.structured.per_group(structure, jp.saliency),
        "scale": lambda: jp.structured.per_group(structure, prunable=jp.matching("*/scale")),
        "median": lambda: jp.structured.geometric_median(structure),
        "random": lambda: jp.structured.random(key, structure),
    }[name]()


def allocation_of(scope: str, structure: Structure) -> Any:
    """What neurons are ranked among: all, their own group, or the groups of a kind."""
    return {
        "global": lambda: jp.global_threshold,
        "local": lambda: jp.uniform,
        "isomorphic": lambda: jp.structured.isomorphic(structure),
    }[scope]()


def pick(s: Study, share: float, scores: Any, before: Any) -> dict[str, Any]:
    """The neurons of one network that are kept: the highest that the share of the FLOPs pays for.

    Raises `RecipeError` if it can't be met.
    """
    try:
        kept = jp.pick(s.structure, scores, None, s.allocation, flops=share, round_to=s.round_to)
    except ValueError as error:
        raise RecipeError(f"--flops: {' '.join(str(error).split())}") from error
    return {group: own & before[group] for group, own in kept.items()}  # what is gone stays gone


def check_budget(s: Study) -> None:
    """Raises `RecipeError` if the networks can't be as small as the last target asks."""
    alike = {name: np.ones(own.size, np.float32) for name, own in s.structure.groups.items()}
    pick(s, min(s.targets), alike, {name: own > 0 for name, own in alike.items()})


def shares_of(targets: Sequence[float], rounds: int) -> list[float]:
    """From 1 to each target in so many rounds, each of which leaves the same fraction."""
    found, before = [], 1.0
    for target in targets:
        found += [before * (target / before) ** (i / rounds) for i in range(1, rounds)]
        found.append(before := target)
    return found


# --- the rounds -----------------------------------------------------------------------------------


class Networks(NamedTuple):
    """What goes from round to round: arms after each other, the seeds of each side by side."""

    network: Network
    kept: tuple[jax.Array, ...]  # neurons, bool (lanes, size), in the order of the groups


def untrained(s: Study) -> Networks:
    """A network for each seed, with the weights of all recipes."""
    network = lanes.initial(s.program, s.keys)
    kept = [jnp.ones((len(s.keys), own.size), bool) for own in s.structure.groups.values()]
    return Networks(network._replace(masks=s.masks(named(s, kept))), tuple(kept))


def one_round(
    s: Study, dataset: Dataset, out: Path, journal: Journal, index: int, networks: Networks
) -> tuple[Networks, dict[str, Any]]:
    """Trains dense networks; later prunes every arm but the dense one, and trains on."""
    n, first = len(s.keys), s.steps + (index - 1) * s.more
    if index == 0:
        dense = lanes.part(networks, 0, n)
        lane = lanes.alike(s.keys, s.rates, s.decay)
        trained = lanes.trained(journal, "dense", s.program, dense.network, lane, s.steps)
        networks = lanes.tile(dense._replace(network=trained), len(s.arms))
        told = {DENSE: {"test_accuracy": _list(s.test(trained))}, "seconds": journal.seconds()}
        return networks, {"round": 0, "step": s.steps, **told}

    share = s.shares[index - 1]
    networks = pruned(s, networks, share, index - 1)
    at_once = s.test(networks.network)
    lane = lanes.alike(lanes.tile(s.keys, len(s.arms)), s.more_rates, s.decay)
    name = f"round {index} of {len(s.shares)}, {100 * share:.3g} % of the FLOPs"
    trained = lanes.trained(journal, name, s.program, networks.network, lane, s.more, first)
    networks, accuracy = networks._replace(network=trained), s.test(trained)

    record: dict[str, Any] = {"round": index, "step": first + s.more, "flops_asked": share}
    for i, arm in enumerate(s.arms):
        start, stop = i * n, (i + 1) * n
        record[arm] = {
            "before_training_on": _list(at_once[start:stop]),
            "test_accuracy": _list(accuracy[start:stop]),
        }
        if arm != DENSE:
            record[arm] |= sizes(s, lanes.part(networks, start, stop))
    if share in s.targets:
        for arm, own in removed(s, networks, share, dataset, out).items():
            record[arm] |= own
    return networks, record | {"seconds": journal.seconds()}


def pruned(s: Study, networks: Networks, share: float, index: int) -> Networks:
    """Each score's networks without their lowest neurons; the first arm, of no score, as it is."""
    n, before = len(s.keys), named(s, networks.kept)
    kept = {group: [own[:n]] for group, own in before.items()}
    keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 4), index))(s.keys)
    for i, score in enumerate(s.scores.values(), 1):
        variables, mine = lanes.part((networks.network.variables, before), i * n, (i + 1) * n)
        scored = score(variables, mine, keys), mine
        chosen = [pick(s, share, *lanes.lane_of(scored, k)) for k in range(n)]
        for group in kept:
            kept[group].append(jnp.stack([own[group] for own in chosen]))
    joined = {group: jnp.concatenate(arms) for group, arms in kept.items()}
    masks = s.masks(joined)
    params = jp.apply_masks(networks.network.params, masks)
    network = networks.network._replace(params=params, masks=masks)
    return Networks(network, tuple(joined.values()))


def removed(
    s: Study, networks: Networks, share: float, dataset: Dataset, out: Path
) -> dict[str, dict[str, list[Any]]]:
    """Compacts and saves the networks of each score; how they differ from the masked ones."""
    image, n, found = dataset.train.images.shape[1:], len(s.keys), {}
    for i, arm in enumerate(s.scores, 1):
        seeds, told = [], []
        for k in range(i * n, (i + 1) * n):
            variables, kept = lanes.lane_of(networks.network.variables, k), known(s, networks, k)
            compacted = jp.compact(s.structure, variables, kept)
            seeds.append((kept, compacted.params))
            masked = Compact(variables, s.program.module.apply)
            told.append(small.compare(masked, compacted, dataset.test))
        path = out / model_path(arm, share)
        folder.remove(path)  # of a round that was stopped
        small.save(path, s.network, image, seeds)
        found[arm] = {key: [own[key] for own in told] for key in told[0]}
    return found


def sizes(s: Study, networks: Networks) -> dict[str, list[Any]]:
    """Weights, FLOPs and widths of the networks of an arm."""
    found = [
        small.size_of(s.structure, known(s, networks, k))._asdict() for k in range(len(s.keys))
    ]
    return {key: [own[key] for own in found] for key in small.Size._fields}


def named(s: Study, kept: Sequence[Any]) -> dict[str, Any]:
    """By group, what comes in their order: names with slashes are none in checkpoints."""
    return dict(zip(s.structure.groups, kept, strict=True))


def known(s: Study, networks: Networks, k: int) -> dict[str, np.ndarray]:
    """The kept neurons of one network as numpy arrays."""
    return named(s, [np.asarray(own[k]) for own in networks.kept])


def _list(values: np.ndarray) -> list[float]:
    return values.tolist()


# --- scores ---------------------------------------------------------------------------------------

# (a stack of variables, the kept neurons of each, keys) -> {group: (lanes, size)}
Scored = Callable[[Any, dict[str, jax.Array], jax.Array], dict[str, jax.Array]]


def scorer(
    name: str, structure: Structure, module: Any, examples: Split, batch_size: int
) -> Scored:
    """The score called `name`; each group's has the mean 1 over its kept neurons.

    What is not kept scores -inf. `examples` are what taylor takes its gradients on. Raises
    `RecipeError` if it can't score these networks.
    """
    batches = jax.device_put(in_batches(examples, batch_size))
    gradients = partial(mean_gradient, module) if name == "taylor" else None

    def of_one(variables: Any, kept: Any, key: jax.Array, grads: Any) -> dict[str, jax.Array]:
        found = score_of(name, key, structure)(variables, grads=grads)
        return {group: normalized(own, kept[group]) for group, own in found.items()}

    try:
        shapes = {group: jnp.ones(own.size, bool) for group, own in structure.groups.items()}
        jax.eval_shape(of_one, structure.shapes, shapes, jax.random.key(0), structure.shapes)
    except ValueError as error:
        raise RecipeError(f"--score {name}: {' '.join(str(error).split())}") from error

    @jax.jit
    def scored(stack: Any, kept: dict[str, jax.Array], keys: jax.Array, batches: Split) -> Any:
        grads = None if gradients is None else gradients(stack, batches)
        return jax.vmap(of_one)(stack, kept, keys, grads)

    return lambda stack, kept, keys: scored(stack, kept, keys, batches)


def normalized(own: jax.Array, kept: jax.Array) -> jax.Array:
    """Scores (size,) over the mean of those that are kept; -inf where a neuron is not."""
    mean = jnp.sum(jnp.where(kept, own, 0)) / jnp.maximum(jnp.sum(kept, dtype=jnp.int32), 1)
    return jnp.where(kept, own / jnp.maximum(mean, jnp.finfo(own.dtype).tiny), -jnp.inf)


def in_batches(examples: Split, batch_size: int) -> Split:
    """All that fill a batch, with an axis of batches in front; fewer than one batch make one."""
    n = min(batch_size, len(examples.labels))
    whole = len(examples.labels) // n
    images, labels = (x[: whole * n].reshape(whole, n, *x.shape[1:]) for x in examples)
    return Split(images, labels)


def mean_gradient(module: Any, stack: Any, batches: Split) -> Any:
    """The gradient of the mean loss by each network's variables; in evaluation mode, as pruned."""

    def loss(variables: Any, batch: Split) -> jax.Array:
        logits: Any = module.apply(variables, batch.images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean()

    def add(total: Any, batch: Split) -> tuple[Any, None]:
        grads = jax.vmap(jax.grad(loss), in_axes=(0, None))(stack, batch)
        return jax.tree.map(jnp.add, total, grads), None

    zeros = jax.tree.map(jnp.zeros_like, stack)
    total, _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda g: g / len(batches.labels), total)


# --- what is asked for ----------------------------------------------------------------------------


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
    rates: jax.Array  # of training (steps,)
    more_rates: jax.Array
    decay: float
    test: Callable[[Network], np.ndarray]

    @property
    def arms(self) -> tuple[str, ...]:
        """Dense networks, and those of each score."""
        return DENSE, *self.scores


def study_of(config: Config, dataset: Dataset) -> Study:
    """The programs of all rounds; raises `RecipeError` for what can't be scored."""
    network: dict[str, Any] = {
        "name": config.model,
        "classes": dataset.classes,
        "norm": config.norm,
        "width": config.width,
    }
    module = models.model(**network)
    plan = settings.plan_of(config, len(dataset.train.labels))
    structure = small.structure_of(module, dataset.train.images.shape[1:])
    scored_on = Split(*(x[: config.examples] for x in dataset.train))
    more = max(round(config.retrain * plan.steps), 1)
    longest = max(plan.steps, more)
    rate = config.learning_rate if config.retrain_rate is None else config.retrain_rate
    again = settings.SCHEDULES[config.schedule](rate, more)
    optimizer, test = optimizer_of(config, structure), measures.accuracy(module, dataset.test)
    return Study(
        network=network,
        structure=structure,
        program=lanes.program(
            module, optimizer, dataset.train, config.batch_size, plan.chunk_steps
        ),
        masks=jax.jit(jax.vmap(lambda kept: jp.structured.masks(structure, kept)["params"])),
        keys=lanes.seed_keys(config.seed, config.seeds),
        scores={
            name: scorer(name, structure, module, scored_on, config.batch_size)
            for name in config.score
        },
        allocation=allocation_of(config.scope, structure),
        round_to=config.round_to,
        targets=config.flops,
        shares=shares_of(config.flops, config.rounds),
        steps=plan.steps,
        more=more,
        rates=lanes.table(settings.rates(config, plan.steps), plan.steps, longest),
        more_rates=lanes.table(again, more, longest),
        decay=config.weight_decay,
        test=lambda network: test(network.variables),
    )


main = cli.command(Config, structured_pruning)

if __name__ == "__main__":
    main()
