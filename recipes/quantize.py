"""Fewer bits on top of fewer weights, methods side by side: `python -m recipes.quantize --help`.

Trains networks of several sparsities by gradual magnitude pruning. Then every method quantizes
their weights: without training (ptq), or with a training under fixed masks in which the network
uses Q(masks * weights). Beside the plain loss a teacher may help: the dense network of the same
seed. `--pattern 2:4` adds networks of GPUSQ's flow: the trained dense network is pruned to 2:4,
trained with its teacher, and then quantized like the others. The picture is the error over the size
in bits. Writes a folder that reproduces itself.

References: Jacob et al., 2018 (qat); Esser et al., 2020 (lsq); Han et al., 2016 (codebook); Polino
et al., 2018, Model Compression via Distillation and Quantization (levels, and the teacher); Yu et
al., 2023, Boost Vision Transformer with GPU-Friendly Sparsity and Quantization (2:4).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.reparam import DenseWeights, Reparameterization
from recipes.common import checkpoints, data, dead, flags, folder, lanes, measures, settings
from recipes.common.cli import command
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Network, State
from recipes.common.models import classification
from recipes.gmp import pruning_steps
from recipes.reports import quantize as report

METHODS: dict[str, Any] = {
    "ptq": jp.reparam.fake_quantization,  # qat without training
    "qat": jp.reparam.fake_quantization,
    "lsq": jp.reparam.lsq,
    "levels": jp.reparam.learned_levels,
    "codebook": jp.reparam.codebook,
}
GRIDS = {"layer": (), "output": -1}
TEACHERS = ("none", "dense")
PATTERNS = ("none", "2:4")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Quantization of sparse networks, methods, bits and sparsities side by side."""

    out: Path = Path("runs/quantize")
    sparsity: Annotated[tuple[float, ...], flags.within("[0, 1)"), flags.DISTINCT] = (
        *(0.0, 0.5, 0.8, 0.9),
    )
    """The fractions of weights that are pruned; 0 for dense networks."""
    pattern: Annotated[str, flags.choice(PATTERNS)] = "none"
    """Beside these sparsities, networks with 2 of every 4 consecutive inputs."""
    bits: Annotated[tuple[int, ...], flags.at_least(2, 8), flags.DISTINCT] = (8, 4, 3, 2)
    """Bits of each weight."""
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = tuple(METHODS)
    """Without training (ptq), or trained: uniform grids that end at the largest weight (qat), grids
    whose steps learn (lsq), levels that learn, for scaled weights (levels), or values that weights
    share and that learn (codebook)."""
    teacher: Annotated[tuple[str, ...], flags.choice(TEACHERS), flags.DISTINCT] = ("none",)
    """Train without or with the logits of the dense network of the same seed."""
    grids: Annotated[str, flags.choice(GRIDS)] = "layer"
    """The weights that share a grid or a codebook: of a layer, or of an output."""
    tune: Annotated[float, flags.within("(0, 100]")] = 0.5
    """The length of a method's training, as a fraction of the steps."""
    tune_rate: flags.Positive = 3e-4
    """Its learning rate."""
    every: flags.Count = 10
    """Steps between updates of the masks."""
    temperature: flags.Positive = 4.0
    """Of the teacher."""
    weight: Annotated[float, flags.within("[0, 1]")] = 0.9
    """Of the teacher in the loss; the labels have the rest."""
    seeds: settings.Seeds = 3
    """Seeds of each network, side by side."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested at the end of a training

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        needs = {
            "--teacher dense": "dense" in self.teacher,
            f"--pattern {self.pattern}": self.pattern != "none",
        }
        for flag in (flag for flag, needed in needs.items() if needed and 0.0 not in self.sparsity):
            yield f"{flag} needs --sparsity 0 among the sparsities: it is the dense network"


class Lane(NamedTuple):
    """A network: its sparsity, and what the teacher tells it."""

    order: jax.Array  # keys (lanes,)
    sparsity: jax.Array  # (lanes,)
    weight: jax.Array  # (lanes,): of the teacher in the loss
    teacher: Any = ()  # variables of the dense network of the same seed; () where there is none


class Study(NamedTuple):
    """The values that all phases share."""

    config: Config
    dataset: data.Dataset
    module: Any
    steps: int
    tuned: int  # steps of a method's training
    chunk: int
    test: measures.Accuracy

    @property
    def keys(self) -> jax.Array:
        """A key for each seed."""
        return lanes.seed_keys(self.config.seed, self.config.seeds)

    @property
    def runs(self) -> list[tuple[str, int]]:
        """The phases after the first: (method, bits)."""
        return [(method, bits) for method in self.config.method for bits in self.config.bits]

    @property
    def kinds(self) -> list[str]:
        """The networks of a seed, by what is pruned."""
        patterns = [] if self.config.pattern == "none" else [self.config.pattern]
        return [*(f"{100 * sparsity:g} %" for sparsity in self.config.sparsity), *patterns]

    @property
    def sparsity(self) -> jax.Array:
        """What gradual pruning prunes of each network: 0 of those with a pattern."""
        given = jnp.array(self.config.sparsity, jnp.float32)
        return jnp.pad(given, (0, len(self.kinds) - len(given)))


# --- the methods ----------------------------------------------------------------------------------


def pruned(study: Study) -> tuple[lanes.Program, Lane]:
    """Gradual magnitude pruning to the sparsity of each lane: sparsities, then seeds."""
    config, n = study.config, study.config.seeds
    first, last = pruning_steps(0.1, 0.7, study.steps)

    def optimizer(lane: Lane) -> optax.GradientTransformation:
        ramp = optax.polynomial_schedule(0.0, 1.0, 3, last - first, first)
        gmp = jp.prune(jp.magnitude, jp.global_threshold, lambda step: lane.sparsity * ramp(step))
        masks = jp.every(config.every, gmp, start=first, stop=last)
        return jp.sparsify(settings.optimizer(config, study.steps), masks)

    sparsity, order = jnp.repeat(study.sparsity, n), jnp.tile(study.keys, len(study.kinds))
    lane = Lane(order, sparsity, jnp.zeros(len(order)))
    train = study.dataset.train
    return lanes.program(study.module, optimizer, train, config.batch_size, study.chunk), lane


def quantized(study: Study, method: Reparameterization) -> lanes.Program:
    """Training of what `method` learns, under masks that stay."""
    config, module = study.config, study.module
    cross_entropy = classification(module)

    def loss(learned: Any, state: State, images: Any, labels: Any, lane: Lane) -> Any:
        params = method.apply(learned)
        value, (accuracy, batch_stats) = cross_entropy(params, state.batch_stats, images, labels)
        if lane.teacher:
            soft = distilled(module, params, state.batch_stats, lane, images, config.temperature)
            value = (1 - lane.weight) * value + lane.weight * soft
        return value, (accuracy, batch_stats)

    still = jp.fixed(lambda learned: jax.tree.map(lambda x: jnp.ones(x.shape, bool), only(learned)))
    tx = jp.sparsify(optax.adam(config.tune_rate), still)
    train = study.dataset.train
    return lanes.program(module, lambda lane: tx, train, config.batch_size, study.chunk, loss)


def distilled(
    module: Any, params: Any, batch_stats: Any, lane: Lane, images: Any, temperature: float
) -> jax.Array:
    """T^2 times the divergence of the network's softened answers from the teacher's."""
    variables = {"params": params, "batch_stats": batch_stats}
    own, _ = module.apply(variables, images, train=True, mutable=["batch_stats"])
    told = jax.lax.stop_gradient(module.apply(lane.teacher, images))
    log_p, log_q = (jax.nn.log_softmax(logits / temperature) for logits in (told, own))
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))


def only(learned: Any, weights: Any = None) -> Any:
    """Like what a method learns: `weights` or its kernels, and None for all other leaves."""
    rest = jax.tree.map(lambda _: None, learned)
    return rest._replace(weights=jp.kernels(learned.weights) if weights is None else weights)


# --- the phases -----------------------------------------------------------------------------------


def one_run(study: Study, kept: Journal, i: int, network: Network) -> tuple[Network, dict]:
    """Trains the float networks; later quantizes them by one method with one number of bits."""
    config = study.config
    if i == 0:
        p, lane = pruned(study)
        words = f"{len(lane.order)} networks, float32"
        train = lambda state, done, at: lanes.train(p, state, lane, study.steps, at, done)
        state = kept.once("float32", study.steps, lanes.begin(p, network, lane), train, words)
        network = state.network
        if config.pattern != "none":
            network = with_pattern(study, kept, network)
        record = {"method": "float32", "bits": 32} | told(study, network, 1)
        return network, {"seconds": kept.seconds(), **record}

    name, bits = study.runs[i - 1]
    method = METHODS[name](bits, GRIDS[config.grids])
    trains = name != "ptq"
    teachers = len(config.teacher) if trains else 1
    stack = lanes.tile(network, teachers)
    learned = jax.vmap(method.init)(stack.params)
    batch_stats = stack.batch_stats
    if trains:
        masks = only(learned, stack.masks)
        lane, p = lane_of(study, network), quantized(study, method)
        first = lanes.begin(p, Network(learned, batch_stats, masks), lane)
        words = f"{name}, {bits} bits: {len(lane.order)} networks"
        train = lambda state, done, at: lanes.train(p, state, lane, study.tuned, at, done)
        state = kept.once(f"{name} {bits}", study.tuned, first, train, words)
        learned, batch_stats = state.params, state.batch_stats
    used = Network(jax.jit(jax.vmap(method.apply))(learned), batch_stats, stack.masks)
    path = config.out / folder.MODEL / f"{name}-{bits}"
    folder.remove(path)  # of a run that was stopped
    checkpoints.save_model(path, used.params, used.batch_stats, used.masks)
    record = {"method": name, "bits": bits} | told(study, used, teachers)
    return network, {"seconds": kept.seconds(), **record}


def with_pattern(study: Study, kept: Journal, network: Network) -> Network:
    """The networks, the last of which are dense and become 2:4: pruned at once, then trained."""
    config, n = study.config, study.config.seeds
    before = (len(study.kinds) - 1) * n
    rest, last = lanes.part(network, 0, before), lanes.part(network, before)
    halves = lambda params: jp.select(
        jp.magnitude(jp.kernels(params)), jp.uniform, 0.5, jp.nm(2, 4)
    )
    masks = jax.jit(jax.vmap(halves))(last.params)
    params = jax.vmap(jp.apply_masks)(last.params, masks)
    plain = Reparameterization(DenseWeights, lambda learned, **_: learned.weights)
    p, lane = quantized(study, plain), lane_of(study, network)
    lane = lanes.part(lane, len(lane.order) - n)  # with the last teacher
    learned = DenseWeights(params)
    first = lanes.begin(p, Network(learned, last.batch_stats, only(learned, masks)), lane)
    train = lambda state, done, at: lanes.train(p, state, lane, study.tuned, at, done)
    state = kept.once(config.pattern, study.tuned, first, train, f"{n} networks, {config.pattern}")
    return lanes.join(rest, Network(state.params.weights, state.batch_stats, masks))


def lane_of(study: Study, network: Network) -> Lane:
    """Teachers, then kinds of networks, then seeds."""
    config, n = study.config, study.config.seeds
    many = len(study.kinds)
    weights = [config.weight if teacher == "dense" else 0.0 for teacher in config.teacher]
    teacher: Any = ()
    if "dense" in config.teacher:
        at = config.sparsity.index(0.0) * n
        dense = lanes.part(network, at, at + n)
        teacher = lanes.tile(dense.variables, many * len(weights))
    order = jnp.tile(study.keys, many * len(weights))
    sparsity = jnp.tile(jnp.repeat(study.sparsity, n), len(weights))
    return Lane(order, sparsity, jnp.repeat(jnp.array(weights), many * n), teacher)


def told(study: Study, network: Network, teachers: int) -> dict[str, Any]:
    """Accuracies and sizes in bits: (teachers, kinds of networks, seeds)."""
    shape = teachers, len(study.kinds), study.config.seeds
    stored = network.params, network.masks
    size = lambda i: jp.reparam.coded_size(*lanes.lane_of(stored, i)).bits
    empty = [
        dead.empty_layers(lanes.part(network.masks, i, i + shape[2]))
        for i in range(0, len(study.keys) * shape[0] * shape[1], shape[2])
    ]
    sizes = np.array([size(i) for i in range(np.prod(shape))]).reshape(shape)
    return {
        "test_accuracy": study.test(network.variables).reshape(shape).tolist(),
        "size": sizes.tolist(),
        "empty_layers": empty,
    }


def quantize(config: Config) -> dict[str, Any]:
    """Trains, quantizes, writes the folder `config.out`; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    plan = settings.plan_of(config, len(dataset.train.labels))
    tuned = max(round(config.tune * plan.steps), 1)
    module = settings.module_of(config, dataset.classes)
    test = measures.accuracy(module, dataset.test)
    study = Study(config, dataset, module, plan.steps, tuned, plan.chunk_steps, test)
    began = time.perf_counter()
    with journal(config) as kept:
        p, lane = pruned(study)
        start = lanes.begin(p, lanes.initial(p, lane.order)._replace(masks=None), lane).network
        lanes.phases(kept, 1 + len(study.runs), start, partial(one_run, study, kept))
    return report.write(study, kept.records, time.perf_counter() - began)


main = command(Config, quantize)

if __name__ == "__main__":
    main()
