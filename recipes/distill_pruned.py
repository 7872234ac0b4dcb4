"""A pruned student taught by its dense teacher: `python -m recipes.distill_pruned --help`.

Trains a few dense networks, and cuts each once, to a quarter of the FLOPs: the neurons of the
smallest norms go, the same share of every layer, and the network is really smaller. Then students
train on, one for each loss of distillation, beside one that learns from labels alone, all from the
same weights, on the same batches, for as many steps. The report has accuracy and calibration.
(`recipes.distilled_pruning` is another study: masks from distilled data.)

References: Hinton et al., 2015; Romero et al., 2015 (FitNets); Zagoruyko and Komodakis, 2017
(attention transfer); Park et al., 2019 (relational); Chu et al., 2022 (spatial attention); Amara et
al., 2023 (BD-KD); Zhang et al., 2024 (LAPTOP-Diff); Guo et al., 2017 (calibration).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from jaxprune import distillation
from jaxprune.structured import Structure
from jaxprune.trees import present_leaves
from recipes.common import cli, confidence, data, flags, folder, lanes, models, settings, small
from recipes.common.data import Dataset, Key
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Network, State
from recipes.reports import distill_pruned as report
from recipes.reports.distill_pruned import CUT, DENSE, PLAIN


class Seen(NamedTuple):
    """What a student and its teacher say of a batch, and the features that their layers read."""

    own: jax.Array  # logits (n, classes)
    told: jax.Array
    labels: jax.Array  # (n,)
    layers: Sequence[tuple[jax.Array, jax.Array]]  # (own, told)
    regressors: Sequence[Any]  # of each layer; () where the loss has none
    config: Config

    @property
    def plain(self) -> jax.Array:
        """The cross-entropy with the labels."""
        return optax.softmax_cross_entropy_with_integer_labels(self.own, self.labels).mean()

    def answers(self, divergence: Callable[..., jax.Array]) -> jax.Array:
        """The labels and the softened answers of the teacher, mixed."""
        share, temperature = self.config.weight, self.config.temperature
        return (1 - share) * self.plain + share * divergence(self.own, self.told, temperature)

    def features(self, terms: Sequence[jax.Array]) -> jax.Array:
        """The labels, and the mean over layers of a loss of features."""
        return self.plain + self.config.strength * jnp.mean(jnp.stack(terms))

    def each(self, loss: Callable[..., jax.Array], places: bool = False) -> list[jax.Array]:
        """A loss of features without a regressor, of each layer, or of each that has places."""
        return [loss(own, told) for own, told in self.layers if own.ndim > 2 or not places]

    def hints(self) -> list[jax.Array]:
        """FitNets, of each layer."""
        pairs = zip(self.layers, self.regressors, strict=True)
        return [distillation.fitnets(*layer, regressor) for layer, regressor in pairs]


PLACES: dict[str, Callable[[Seen], jax.Array]] = {
    "attention": lambda s: s.features(s.each(distillation.attention_transfer, places=True)),
    "spatial": lambda s: s.features(s.each(distillation.spatial_attention, places=True)),
}
REGRESSED: dict[str, Callable[[Seen], jax.Array]] = {
    "fitnets": lambda s: s.features(s.hints()),
    "normalized": lambda s: distillation.normalized(s.plain, s.hints()),
}
LOSSES: dict[str, Callable[[Seen], jax.Array]] = {
    "hinton": lambda s: s.answers(distillation.forward_kl),
    "reverse_kl": lambda s: s.answers(distillation.reverse_kl),
    "balanced_kl": lambda s: s.answers(distillation.balanced_kl),
    **PLACES,
    "relational": lambda s: s.features(s.each(distillation.relational)),
    **REGRESSED,
}


@dataclass(frozen=True)
class Config(settings.Settings):
    """Losses of distillation side by side, after one structured cut: accuracy and calibration."""

    out: Path = Path("runs/distill_pruned")
    model: Annotated[str, flags.choice(models.MODELS)] = "conv"
    """The network; lenet is LeNet-300-100, vit a vision transformer."""
    width: Annotated[float, flags.within("(0, 100]")] = 0.5
    """A factor for the sizes of the hidden layers."""
    loss: Annotated[
        tuple[str, ...],
        flags.choice(LOSSES),
        flags.default("all, attention and spatial only with a convolutional network"),
    ] = ()
    """What the teacher tells: softened answers (hinton, reverse_kl, balanced_kl) or features; a
    student of plain cross-entropy is always beside."""
    flops: Annotated[float, flags.within("(0, 1)")] = 0.25
    """The share of the dense FLOPs that the cut leaves."""
    tune: Annotated[float, flags.within("(0, 100]")] = 0.5
    """The length of the students' training, as a fraction of the steps."""
    temperature: flags.Positive = 4.0
    """Of answers."""
    weight: Annotated[float, flags.within("[0, 1]")] = 0.9
    """Of the teacher's answers in the loss; the labels have the rest."""
    strength: flags.Positive = 1.0
    """What multiplies a loss of features, which is added to the cross-entropy; not normalized."""
    layers: Annotated[tuple[str, ...], flags.default("all kernels after the first")] = ()
    """The params that name layers, such as Conv_1/kernel; what they read is the feature."""
    learning_rate: flags.Positive = 3e-3
    """The highest learning rate, of the students too."""
    seeds: settings.Seeds = 3
    """Seeds of each student, side by side."""
    steps: Annotated[int | None, flags.default("the steps of --epochs")] = 300
    """Training steps of the dense networks, in place of epochs."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested at the end of a training

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        for flag, names in (("--loss", self.loss), ("--layers", self.layers)):
            if twice := [name for i, name in enumerate(names) if name in names[:i]]:
                yield f"{flag} has {twice[0]} twice"
        if self.norm == "batch":
            yield (
                "--norm batch has running statistics, which the compacted network does not renew; "
                "choose --norm group"
            )


class Lane(NamedTuple):
    """The students of a seed, an arm each, and their teacher."""

    order: jax.Array  # keys (seeds,)
    teacher: Any  # variables of the dense networks (seeds,)


class Study(NamedTuple):
    """The values that both phases share."""

    config: Config
    dataset: Dataset
    module: Any
    structure: Structure
    layers: dict[str, tuple[Any, Any]]  # name -> shapes of the features of student and teacher
    losses: tuple[str, ...]
    steps: int
    tuned: int  # steps of the students
    chunk: int

    @property
    def keys(self) -> jax.Array:
        """A key for each seed."""
        return lanes.seed_keys(self.config.seed, self.config.seeds)

    @property
    def arms(self) -> tuple[str, ...]:
        """Plain cross-entropy, and each loss."""
        return PLAIN, *self.losses


# --- the method -----------------------------------------------------------------------------------


def kept_of(structure: Structure, variables: Any, flops: float) -> Any:
    """The kept neurons of one network, by L2 within each layer: the same share of every layer.

    So the students of all seeds have equal shapes, and train side by side.
    """
    scores = jp.structured.per_group(structure, jp.structured.square)(variables)
    try:
        return jp.pick(structure, scores, None, jp.uniform, flops=flops)
    except ValueError as error:
        raise RecipeError(f"--flops: {' '.join(str(error).split())}") from error


def program(s: Study, steps: int = 0, loss: Any = None) -> lanes.Program:
    """Training by so many steps, those of the dense networks by default, without pruning."""
    config = s.config
    tx = jp.sparsify(settings.optimizer(config, steps or s.steps), jp.fixed(lanes.keep_all))
    how = s.dataset.train, config.batch_size, s.chunk
    return lanes.program(s.module, lambda lane: tx, *how, loss)


def students(s: Study, fn: Callable[..., Any]) -> lanes.Program:
    """Training of compacted networks, one an arm; a step asks their teacher once.

    The sum of the losses of all arms has the gradient of each arm's own.
    """
    watched = distillation.features(fn, s.layers)
    teach = distillation.features(s.module.apply, s.layers)
    losses = {PLAIN: lambda seen: seen.plain, **LOSSES}

    def loss(params: Any, state: State, images: Any, labels: Any, lane: Lane) -> Any:
        told, theirs = teach(lane.teacher, images)
        answers, ours = jax.vmap(watched, in_axes=(0, None))(params["students"], images)
        of_arms = lambda x: [part[0] for part in jnp.split(x, len(s.arms))]
        logits, maps = of_arms(answers), {name: of_arms(x) for name, x in ours.items()}

        def of_arm(i: int, arm: str) -> jax.Array:
            layers = [(maps[name][i], theirs[name]) for name in s.layers]
            own = params["regressors"].get(arm, ())
            return losses[arm](Seen(logits[i], told, labels, layers, own, s.config))

        total = sum(of_arm(i, arm) for i, arm in enumerate(s.arms))
        right = answers.argmax(-1) == labels[None]
        return total, (jnp.mean(right), state.batch_stats)

    return program(s, s.tuned, loss)


def beginning(s: Study, stack: Any) -> Network:
    """The compacted network of each seed, once for every arm, and new regressors."""

    @jax.vmap
    def made(key: jax.Array) -> list[Any]:
        keys = jax.random.split(key, len(s.layers))
        return [distillation.regressor(keys[i], *both) for i, both in enumerate(s.layers.values())]

    first = made(data.folded(s.keys, Key.STUDY))
    params = {
        "students": jax.tree.map(lambda x: jnp.stack([x] * len(s.arms), 1), stack),
        "regressors": {arm: first for arm in s.arms if arm in REGRESSED},
    }
    return Network(params, {}, lanes.keep_all(params))


# --- the phases -----------------------------------------------------------------------------------


def one_phase(s: Study, kept: Journal, i: int, dense: Network) -> tuple[Network, dict[str, Any]]:
    """Trains the dense networks; then cuts them, and trains the students."""
    record: dict[str, Any]
    test = s.dataset.test
    teach = confidence.logits_of(s.module.apply, test.images)
    if i == 0:
        dense = lanes.trained(kept, DENSE, program(s), dense, lanes.Lane(s.keys), s.steps)
        told = teach(dense.variables)
        record = {
            "phase": 0,
            "step": kept.step,
            DENSE: confidence.of_seeds(told, test.labels, told),
        }
        return dense, {**record, "seconds": kept.seconds()}

    told, image = teach(dense.variables), s.dataset.train.images.shape[1:]
    network, _ = small.network_of(s.config, s.dataset)
    seeds = [lanes.lane_of(dense.variables, k) for k in range(s.config.seeds)]
    masks = [kept_of(s.structure, variables, s.config.flops) for variables in seeds]
    pairs = zip(seeds, masks, strict=True)
    fn, stack = small.side_by_side([jp.compact(s.structure, *pair) for pair in pairs], image)
    ask = confidence.logits_of(fn, test.images)
    first, lane = beginning(s, stack), Lane(s.keys, dense.variables)
    end = lanes.trained(kept, "students", students(s, fn), first, lane, s.tuned, s.steps)
    record = {
        "phase": 1,
        "step": kept.step,
        CUT: confidence.of_seeds(ask(stack), test.labels, told),
    }
    for i, arm in enumerate(s.arms):
        own = jax.tree.map(lambda x, i=i: x[:, i], end.params["students"])
        record[arm] = confidence.of_seeds(ask(own), test.labels, told)
        path = s.config.out / report.model_path(arm)
        folder.remove(path)  # of a run that was stopped
        small.save(path, network, image, [(m, lanes.lane_of(own, k)) for k, m in enumerate(masks)])
    sizes = [small.size_of(s.structure, mask) for mask in masks]
    record |= {"weights": [x.weights for x in sizes], "flops": [x.flops for x in sizes]}
    return dense, {**record, "seconds": kept.seconds()}


# --- the study ------------------------------------------------------------------------------------


def study_of(config: Config, dataset: Dataset) -> Study:
    """What both phases share; raises `RecipeError` for what does not fit, before any training."""
    module = settings.module_of(config, dataset.classes)
    variables, image = small.shapes_of(module, dataset.train.images.shape[1:])
    structure = jp.analyze(module.apply, variables, image)
    layers = layers_of(config, structure, module, image)
    has_places = any(len(own.shape) > 2 for own, _ in layers.values())
    losses = config.loss or tuple(n for n in LOSSES if has_places or n not in PLACES)
    if wrong := [name for name in losses if name in PLACES and not has_places]:
        raise RecipeError(
            f"--loss {wrong[0]} needs features with places, and the layers read vectors; choose "
            "--model conv, or other losses"
        )
    plan = settings.plan_of(config, len(dataset.train.labels))
    tuned = max(round(config.tune * plan.steps), 1)
    of = config, dataset, module, structure, layers, losses
    return Study(*of, plan.steps, tuned, plan.chunk_steps)


def layers_of(config: Config, structure: Structure, module: Any, image: Any) -> dict[str, Any]:
    """The layers of --layers, with the shapes of the features of student and teacher.

    By default all whose features keep their places in the cut; the cut of any weights has these
    shapes.
    """
    ones = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), structure.shapes)
    small_one = jp.compact(structure, ones, kept_of(structure, ones, config.flops))
    first = models.FIRST_LAST[config.model][0]
    kernels = (name for name, _ in present_leaves(jp.kernels(structure.shapes["params"])))
    chosen = config.layers or [name for name in kernels if name != first]
    names = [f"params/{name}" for name in chosen]
    shapes = lambda fn, of: jax.eval_shape(distillation.features(fn, names), of, image)[1]
    try:
        own, told = shapes(small_one.fn, small_one.params), shapes(module.apply, ones)
    except ValueError as error:
        raise RecipeError(f"--layers: {' '.join(str(error).split())}") from error
    moved = [name for name in names if own[name].shape[:-1] != told[name].shape[:-1]]
    if config.layers and moved:
        name = moved[0]
        raise RecipeError(
            f"--layers: the cut takes places of {name}, whose features have shape "
            f"{own[name].shape} in the student and {told[name].shape} in the teacher; leave it out"
        )
    return {name: (own[name], told[name]) for name in names if name not in moved}


def distill_pruned(config: Config) -> dict[str, Any]:
    """Trains, cuts, distills, writes the folder `config.out`; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    s = study_of(config, dataset)
    with journal(config) as kept:
        start = lanes.initial(program(s), s.keys)
        lanes.phases(kept, 2, start, partial(one_phase, s, kept))
        return report.write(s, kept.records)


main = cli.command(Config, distill_pruned)

if __name__ == "__main__":
    main()
