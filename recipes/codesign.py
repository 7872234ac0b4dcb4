"""Neural architecture codesign by error and bit operations: `python -m recipes.codesign --help`.

Stage 1 searches widths, depth, activation, normalization and learning rate for a small error and
few bit operations (BOPs), by NSGA-II; every trial of a population trains in one program. Stage 2
trains the chosen architecture with fake quantization, and prunes 20 % of the weights left in each
round, without rewinding. The picture is error over BOPs. The best network is exported, without its
code, and by `--hls` as C++ for an FPGA. Writes a folder that reproduces itself.

References: McDermott et al., 2023, Neural Architecture Codesign for Fast Bragg Peak Analysis; Weitz
et al., 2025, Neural Architecture Codesign for Fast Physics Applications.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import (
    checkpoints,
    cli,
    data,
    dead,
    exported,
    flags,
    folder,
    hls,
    lanes,
    measures,
    search,
    settings,
)
from recipes.common.folder import RecipeError
from recipes.common.journal import At, Journal, journal
from recipes.common.lanes import Lane, Network, State
from recipes.common.models import classification
from recipes.common.models.searched import Architecture, Searched, Widest, narrowed
from recipes.reports import codesign as report

SLOPES = {"relu": 0.0, "leaky_relu": 0.1}
LOG_EVERY = 50
HELD_OUT = 0.2  # of the training examples: the validation split


@dataclass(frozen=True)
class Config(settings.Settings):
    """Neural architecture codesign: a search by error and bit operations, then bits and pruning."""

    out: Path = Path("runs/codesign")
    population: Annotated[int, flags.at_least(2, 1000)] = 20
    """Trials of a generation; all of them train in one program."""
    generations: flags.Count = 4
    """Generations of the search."""
    widths: Annotated[tuple[int, ...], flags.at_least(1), flags.DISTINCT] = (8, 16, 32, 64)
    """The sizes that a hidden layer may have; beside them a layer may be left out."""
    depth: Annotated[int, flags.at_least(1, 16)] = 3
    """The most hidden layers."""
    rates: tuple[float, float] = (1e-3, 1e-2)
    """The lowest and the highest learning rate of the search."""
    tolerance: Annotated[float, flags.within("[0, 100]")] = 0.5
    """Points of validation error: chosen is the cheapest trial within so many of the best, and from
    stage 2 the cheapest network that is at most so much worse than the first trial."""
    bits: Annotated[tuple[int, ...], flags.at_least(2, 16), flags.DISTINCT] = (8, 6, 4)
    """Bits of weights and of inputs of layers in stage 2."""
    rounds: flags.Count = 10
    """Rounds of stage 2: each trains and then prunes, but for the last, which only trains."""
    rate: Annotated[float, flags.within("(0, 1)")] = 0.2
    """The fraction of the weights left that a round prunes."""
    epochs: Annotated[
        float | None, flags.within("[0, 1000000]"), flags.default("digits 40, mnist 2, cifar10 4")
    ] = None
    """Passes over the data, of a trial and of a round."""
    seeds: settings.Seeds = 3
    """Seeds of each trial, and of each network of stage 2."""
    hls: bool = False
    """Also write an hls4ml project of the exported network, and check that its C++ gives the same
    bits; the search then leaves out norms and leaky ReLU."""
    log_every: Annotated[int | None, flags.at_least(1), flags.default("50")] = None
    """Steps in one call of the device."""
    model: Annotated[str, flags.HIDDEN] = "mlp"
    norm: Annotated[str, flags.HIDDEN] = "batch"
    width: Annotated[float, flags.HIDDEN] = 1.0

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        low, high = self.rates
        if not 0 < low < high:
            yield f"--rates are the lowest and the highest, above 0, got {low:g} {high:g}"
        if not search.installed():
            yield f"recipes.codesign {search.MISSING}"
        if self.hls and hls.lacks():
            yield hls.lacks()


EPOCHS = {"digits": 40, "mnist": 2, "cifar10": 4}


class Study(NamedTuple):
    """The values that all phases share."""

    config: Config
    train: data.Split
    validation: data.Split
    test: data.Split
    classes: int
    steps: int  # of a trial, and of a round

    @property
    def keys(self) -> jax.Array:
        """A key for each seed."""
        return lanes.seed_keys(self.config.seed, self.config.seeds)


# --- stage 1: the architecture --------------------------------------------------------------------


def choices(config: Config) -> search.Choices:
    """The choices of the search."""
    layers = {f"width {i}": (*((0,) if i else ()), *config.widths) for i in range(config.depth)}
    lowest, highest = map(float, config.rates)
    return {
        **layers,
        "activation": ("relu",) if config.hls else tuple(SLOPES),
        "norm": ("none",) if config.hls else ("none", "batch"),
        "learning rate": (lowest, highest),
    }


def first_trial(config: Config) -> dict[str, Any]:
    """The network that the search begins with: the widest and deepest, with ReLU."""
    layers = {f"width {i}": max(config.widths) for i in range(config.depth)}
    return {**layers, "activation": "relu", "norm": "none", "learning rate": config.rates[0]}


def architecture(trial: Mapping[str, Any]) -> Architecture:
    """The architecture of a trial."""
    widths = [trial[name] for name in trial if name.startswith("width ")]
    slope, normed = SLOPES[trial["activation"]], trial["norm"] == "batch"
    return Architecture(np.array(widths, np.int32), np.float32(slope), np.bool_(normed))


def module_of(study: Study, trial: Mapping[str, Any], bits: int = 32) -> Searched:
    """The network of a trial, without layers that are off."""
    of = architecture(trial)
    widths = tuple(int(width) for width in of.widths if width)
    return Searched(widths, float(of.slope), bool(of.normed), study.classes, bits)


class Stage(NamedTuple):
    """The search, and the one program that trains all its trials."""

    search: search.Search
    program: lanes.Program
    accuracy: measures.Accuracy  # on the validation split


def stage_of(study: Study) -> Stage:
    """A search that has not begun."""
    config = study.config
    widest = Widest(config.depth, max(config.widths), study.classes)
    how = config.batch_size, config.log_every or LOG_EVERY
    p = lanes.program(widest, partial(lanes.by_rates, optax.adam), study.train, *how)
    what = choices(config), config.population, config.seed, first_trial(config)
    return Stage(search.Search(*what), p, measures.accuracy(widest, study.validation))


def generation(study: Study, stage: Stage, kept: Journal, i: int) -> dict[str, Any]:
    """Trains all trials of a generation at once; the line of metrics.jsonl."""
    config, p, trials = study.config, stage.program, stage.search.ask()
    each = lambda values: jnp.repeat(jnp.asarray(np.stack(values)), config.seeds, axis=0)
    of = Architecture(*map(each, zip(*map(architecture, trials), strict=True)))
    rates = each([np.float32(trial["learning rate"]) for trial in trials])
    order = jnp.tile(study.keys, len(trials))
    lane = Lane(order, jnp.tile(rates[:, None], study.steps), jnp.zeros(len(order)))

    untrained = lanes.initial(p, order)
    params = jax.vmap(narrowed)(untrained.params, of)
    network = Network(params, {**untrained.batch_stats, **of._asdict()}, None)
    state = kept.once(
        *(f"generation {i}", study.steps, lanes.begin(p, network, lane)),
        lambda state, done, at: lanes.train(p, state, lane, study.steps, at, done),
        f"search: generation {i + 1} of {config.generations}",
    )
    accuracy = stage.accuracy({"params": state.params, "batch_stats": state.batch_stats})
    errors = 1 - accuracy.reshape(len(trials), config.seeds).mean(1)
    costs = [bops(study, module_of(study, trial)) for trial in trials]
    stage.search.tell([*zip(errors.tolist(), costs, strict=True)])
    return {
        "seconds": kept.seconds(),
        "generation": i,
        "error": errors.tolist(),
        "bops": costs,
        "trials": [list(trial.values()) for trial in trials],
    }


def chosen_of(config: Config, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The cheapest trial whose validation error is within the tolerance of the best."""
    errors, costs = report.trials(records)
    near = errors <= errors.min() + config.tolerance / 100 + 1e-9
    best = min(np.flatnonzero(near), key=lambda i: (costs[i], errors[i]))
    trials = [values for line in records if "trials" in line for values in line["trials"]]
    return dict(zip(choices(config), trials[best], strict=True))


def bops(study: Study, module: Searched, masks: Any = None) -> float:
    """The bit operations of one example; under masks (seeds, ...) the mean over seeds."""
    image = jax.ShapeDtypeStruct((1, *study.train.images.shape[1:]), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    params, rest = shapes["params"], {k: v for k, v in shapes.items() if k != "params"}
    fn = lambda params, rest, image: module.apply({"params": params, **rest}, image)
    count = lambda masks: jp.count_bops(fn, params, rest, image, bits=module.bits, masks=masks)
    seeds = [None] if masks is None else [lanes.lane_of(masks, i) for i in range(len(study.keys))]
    return float(np.mean([sum(count(of_seed).leaves.values()) for of_seed in seeds]))


# --- stage 2: bits and weights --------------------------------------------------------------------


class Arm(NamedTuple):
    """A network of stage 2."""

    module: Searched
    program: lanes.Program
    lane: Lane
    used: Any  # params of a stack -> the params that its networks use
    validate: measures.Accuracy
    test: measures.Accuracy


class Ends(NamedTuple):
    """The networks of an arm between rounds: stacks over seeds."""

    state: State
    picked: Network  # after the round that is reported


def arms_of(study: Study, trial: Mapping[str, Any]) -> dict[str, Arm]:
    """The first trial in float32 and dense, and the chosen one with each number of bits."""
    bits = {f"{bits} bits": arm(study, trial, bits) for bits in study.config.bits}
    return {"first trial": arm(study, first_trial(study.config), 32, 0.0), **bits}


def arm(study: Study, trial: Mapping[str, Any], bits: int, rate: float | None = None) -> Arm:
    """Training with fake quantization and iterative pruning: Q(masks * weights)."""
    config, module = study.config, module_of(study, trial, bits)
    rate = config.rate if rate is None else rate

    by_round = lambda step: 1 - (1 - rate) ** jnp.minimum(step // study.steps, config.rounds - 1)
    smallest = jp.prune(jp.magnitude, jp.global_threshold, by_round)
    tx = jp.sparsify(optax.adam(trial["learning rate"]), jp.every(study.steps, smallest))
    used = partial(fixed_point, bits) if bits < 32 else lambda params: params
    cross_entropy = classification(module)
    loss = lambda params, state, *batch_and_lane: cross_entropy(
        used(params), state.batch_stats, *batch_and_lane[:2]
    )
    each = study.train, config.batch_size, config.log_every or LOG_EVERY, loss
    program = lanes.program(module, lambda lane: tx, *each)
    accuracies = (measures.accuracy(module, split) for split in (study.validation, study.test))
    return Arm(module, program, Lane(study.keys), jax.vmap(used), *accuracies)


def fixed_point(bits: int, params: Any) -> Any:
    """The params that a quantized network uses: kernels of so many bits, and biases of 16."""
    of = jp.matching("*/kernel"), jp.matching("Dense_*/bias", "logits/bias")
    for width, chosen in zip((bits, hls.BIAS_BITS), of, strict=True):
        pair = jp.reparam.fake_quantization(width, power_of_two=True, prunable=chosen)
        params = pair.apply(pair.init(params))
    return params


def untrained(arm: Arm) -> Ends:
    """The first state of an arm."""
    network = lanes.initial(arm.program, arm.lane.order)
    state = lanes.begin(arm.program, network._replace(masks=None), arm.lane)
    return Ends(state, lanes.copied(state.network))


def one_round(
    study: Study, arms: Mapping[str, Arm], limit: float, kept: Journal, i: int, ends: Any
) -> tuple[dict[str, Ends], dict[str, Any]]:
    """Trains every arm for a round, its smallest weights pruned first; (ends, record)."""
    after: dict[str, Ends] = {}
    record: dict[str, Any] = {"seconds": kept.seconds(), "round": i}
    for name, arm in arms.items():
        words = f"{name}: round {i + 1} of {study.config.rounds}"
        train = partial(trained, arm, i * study.steps, study.steps)
        first = lanes.copied(ends[name].state)  # the settled state may be saved again
        state = kept.once(f"round {i}, {name}", study.steps, first, train, words)
        network = state.network._replace(params=arm.used(state.params))
        record[name] = measured(study, arm, network)
        taken = report.picked([*kept.records, record], name, limit) == i
        after[name] = Ends(state, lanes.copied(network) if taken else ends[name].picked)
    return after, record


def trained(arm: Arm, first: int, steps: int, state: State, start: int, at: At) -> State:
    """Steps `first + start` to `first + steps`."""
    each = lambda step, state: at(step - first, state)
    return lanes.train(arm.program, state, arm.lane, first + steps, each, first + start)


def measured(study: Study, arm: Arm, network: Network) -> dict[str, Any]:
    """The numbers of an arm after a round."""
    error = lambda accuracy: (1 - accuracy(network.variables)).tolist()
    return {
        "validation_error": error(arm.validate),
        "test_error": error(arm.test),
        "sparsity": jax.vmap(jp.sparsity)(network.masks).tolist(),
        "bops": bops(study, arm.module, network.masks),
        "empty_layers": dead.empty_layers(network.masks),
    }


# --- the command ----------------------------------------------------------------------------------


def codesign(config: Config) -> dict[str, Any]:
    """Searches, trains, writes the folder `config.out`; returns what summary.json holds."""
    study = study_of(config)
    with journal(config) as kept:
        searched(study, kept)
        errors, _ = report.trials(kept.records)
        trial, limit = chosen_of(config, kept.records), errors[0] + config.tolerance / 100
        arms = arms_of(study, trial)
        ends = {name: untrained(arm) for name, arm in arms.items()}
        if kept.settled == config.generations:
            kept.settle(ends)
        before = config.generations + 1
        phase = lambda i, ends: one_round(study, arms, limit, kept, i - before, ends)
        ends = lanes.phases(kept, before + config.rounds, ends, phase)
        seconds = kept.seconds()
    for name in arms:
        network = ends[name].picked
        path = config.out / folder.MODEL / name.replace(" ", "-")
        checkpoints.save_model(path, network.params, network.batch_stats, network.masks)
    name, seed = report.best(kept.records, limit)
    variables = lanes.lane_of(ends[name].picked.variables, seed)
    shape = study.train.images.shape[1:]
    module = arms[name].module
    exported.save(config.out / exported.FILE, module, variables, shape)
    equal = None
    if config.hls and module.bits < 32:
        some = study.test.images[: hls.COMPARED]
        equal = hls.write(config.out / hls.FOLDER, variables, module.bits, some)
    return report.write(study, trial, limit, kept.records, seconds, equal)


def study_of(config: Config) -> Study:
    """Reads the data, and holds out a validation split."""
    dataset = settings.dataset_of(config)
    held = round(HELD_OUT * len(dataset.train.labels))
    train, validation = data.hold_out(dataset.train, held)
    settings.check_batch(config.batch_size, len(train.labels))
    epochs = EPOCHS[config.dataset] if config.epochs is None else config.epochs
    in_epochs = int(epochs * (len(train.labels) // config.batch_size))
    steps = in_epochs if config.steps is None else config.steps
    if steps < 1:
        raise RecipeError(f"--steps (or the steps of --epochs) must be at least 1, got {steps}")
    return Study(config, train, validation, dataset.test, dataset.classes, steps)


def searched(study: Study, kept: Journal) -> None:
    """The search, one phase a generation; a resumed search is told what it was told before."""
    stage = stage_of(study)
    for line in kept.records:
        if "generation" in line:
            stage.search.ask()
            stage.search.tell([*zip(line["error"], line["bops"], strict=True)])
    if kept.settled < study.config.generations:  # later states have another structure
        phase = lambda i, state: (state, generation(study, stage, kept, i))
        lanes.phases(kept, study.config.generations, (), phase)


main = cli.command(Config, codesign)

if __name__ == "__main__":
    main()
