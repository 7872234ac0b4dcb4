"""A few images that teach as many real ones do: `python -m recipes.distill --help`.

Distills several sets at once, one a seed. Then fresh networks train on each set, beside as many
real images by chance, and as many by herding, and on all real images. Writes the sets, a picture of
the images over time, and a table.

References: Zhao and Bilen, 2023, Dataset Condensation with Distribution Matching; Zhao et al.,
2021, Dataset Condensation with Gradient Matching; Kim et al., 2022, Dataset Condensation via
Efficient Synthetic-Data Parameterization.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    flags,
    folder,
    lanes,
    measures,
    models,
    sets,
    settings,
)
from recipes.common.data import Dataset, Key, Split
from recipes.common.folder import RecipeError
from recipes.common.journal import At, Journal, journal
from recipes.common.lanes import Program, State
from recipes.reports import distill as report

METHODS = ("distribution", "gradient", "idc")
RATES = {"distribution": 1.0, "gradient": 0.1, "idc": 5e-3}  # the papers'

DISTANCES = {"cifar10": jp.distill.squared}  # of IDC; of other data the absolute one
SNAPSHOTS = 6  # columns of the picture, the first and the last set included
# the purposes of a seed's key
BEGIN, NETWORKS, FRESH, AUGMENT, HERD = range(Key.STUDY, Key.STUDY + 5)
NETWORK_RATE = 0.01  # of the networks whose gradients are matched


@dataclass(frozen=True)
class Config(settings.Settings):
    """Distilled data: a few synthetic images a class, and what networks learn from them."""

    out: Path = Path("runs/distill")
    method: Annotated[str, flags.choice(METHODS)] = "distribution"
    """What is matched: mean features (distribution), gradients by their cosine (gradient), or
    gradients by their differences, of several images in the numbers of one (idc)."""
    images_per_class: flags.Count = 10
    """Stored images of each class."""
    factor: Annotated[int | None, flags.at_least(1), flags.default("idc 2, others 1")] = None
    """Each stored image holds factor x factor smaller ones."""
    iterations: Annotated[int, flags.at_least(2)] = 400
    """Steps of the images."""
    image_rate: Annotated[
        float | None,
        flags.within("(0, inf)"),
        flags.default("distribution 1, gradient 0.1, idc 0.005 a stored image of ten"),
    ] = None
    """The learning rate of the images (SGD, momentum 0.5)."""
    real_batch: flags.Count = 64
    """Real images of each class in a step."""
    network_steps: flags.Count = 10
    """Steps of a network between two steps of the images, of those whose gradients are matched."""
    network_lives: flags.Count = 10
    """Steps of the images before that network begins anew."""
    augment: Annotated[str, flags.choice(("siamese", "none"))] = "siamese"
    """Augment real and synthetic images alike (DSA), and what the fresh networks train on."""
    flip: bool = False
    """Let the augmentation mirror images; not for digits."""

    model: Annotated[str, flags.choice(models.MODELS)] = "conv"
    """The network; lenet is LeNet-300-100."""
    seeds: settings.Seeds = 3
    """The number of sets, each with networks of its own."""
    steps: Annotated[int, flags.at_least(2)] = 400
    """Steps of each fresh network."""
    epochs: Annotated[float | None, flags.HIDDEN] = None
    evaluations: Annotated[int, flags.HIDDEN] = 1
    keep_best: Annotated[bool, flags.HIDDEN] = False

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if self.flip and self.dataset in ("digits", "mnist"):
            yield f"--flip makes other symbols of the digits of {self.dataset}; leave it out"


def distill(config: Config) -> dict[str, Any]:
    """Distills, trains on the sets, writes `config.out`; returns what summary.json holds."""
    dataset = settings.dataset_of(config)
    study = study_of(config, dataset)
    with journal(config) as log:
        phase = lambda i, made: one_phase(config, study, log, i, made)
        made = lanes.phases(log, 2, untouched(config, study), phase)
        losses, tested = log.records[:-1], log.records[-1]
    return report.write(config, dataset, made, study.factor, losses, tested)


# --- the method -----------------------------------------------------------------------------------


class Study(NamedTuple):
    """What both phases share."""

    program: Program  # which trains images; its examples have one image of each class
    module: Any
    dataset: Dataset
    keys: jax.Array  # (seeds,)
    by_class: np.ndarray  # real images (classes, examples, h, w, c), as many of each
    factor: int


class Seed(NamedTuple):
    """How the set of a seed is distilled: a lane."""

    order: jax.Array  # key: the order of the real images
    key: jax.Array  # of networks and augmentation


class Made(NamedTuple):
    """Stored sets (seeds, classes, n, h, w, c): the last, and those along the way."""

    images: jax.Array
    along: dict[str, jax.Array]  # by the step


def study_of(config: Config, dataset: Dataset) -> Study:
    """What both phases share; raises `RecipeError` where the data are too few."""
    module = settings.module_of(config, dataset.classes)
    by_class = data.by_class(dataset.train, dataset.classes)
    available = by_class.shape[1]
    for flag, number in (
        ("--images-per-class", config.images_per_class),
        ("--real-batch", config.real_batch),
    ):
        if number > available:
            raise RecipeError(
                f"{flag} {number} is more than the {available} examples that the smallest class "
                f"of {config.dataset} has; take fewer, or more --train-examples"
            )
    factor = config.factor or (2 if config.method == "idc" else 1)
    rate = config.image_rate or RATES[config.method]
    if config.method == "idc" and config.image_rate is None:
        rate *= config.images_per_class / 10
    program = lanes.program(
        module,
        lambda lane: optax.sgd(rate, momentum=0.5),
        Split(by_class.swapaxes(0, 1), np.zeros(available, np.int32)),
        config.real_batch,
        config.log_every or 20,
        loss=matching_loss(config, module, factor),
    )
    keys = lanes.seed_keys(config.seed, config.seeds)
    return Study(program, module, dataset, keys, by_class, factor)


def matching_loss(config: Config, module: Any, factor: int) -> lanes.Loss:
    """The loss of stored images (classes, n, h, w, c) beside real ones (m, classes, h, w, c).

    In place of running statistics the state has the step, and the network whose gradients are
    matched.
    """
    augment = augmentation(config.augment, config.flip)
    loss_fn = models.classification(module)

    def task(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return loss_fn(params, {}, images, labels)[0]

    def loss(stored: jax.Array, state: State, real: jax.Array, _: Any, lane: Seed) -> Any:
        step, network = state.batch_stats["step"], state.batch_stats["network"]
        keys = jax.random.split(jax.random.fold_in(lane.key, step), 3)
        fresh = module.init(keys[0], real[0, :1])["params"]
        synthetic, real = jp.distill.multi_formation(stored, factor), real.swapaxes(0, 1)
        how = {"augment": augment, "key": keys[1] if augment else None}

        if config.method == "distribution":
            features = lambda images: models.features(module, fresh, images)
            value = jp.distill.distribution_matching(features, synthetic, real, **how)
            return value, (jnp.float32(0), {"step": step + 1, "network": network})

        begins = step % config.network_lives == 0
        network = jax.tree.map(lambda new, old: jnp.where(begins, new, old), fresh, network)
        how |= {"distance": jp.distill.cosine}
        if config.method == "idc":
            how |= {
                "distance": DISTANCES.get(config.dataset, jp.distill.absolute),
                "prunable": jp.matching(exclude=models.FIRST_LAST[config.model][1]),
            }
        value = jp.distill.gradient_matching(task, network, synthetic, real, **how)
        # IDC's networks learn from real images, those of the others from the synthetic ones
        lessons = real if config.method == "idc" else jax.lax.stop_gradient(synthetic)
        network = taught(task, network, lessons, augment, keys[2], config.network_steps)
        return value, (jnp.float32(0), {"step": step + 1, "network": network})

    return loss


def taught(
    task: Any, params: Any, images: jax.Array, augment: Any, key: jax.Array, steps: int
) -> Any:
    """The network after some steps of SGD on images (classes, n, ...)."""
    labels = jnp.repeat(jnp.arange(len(images)), images.shape[1])
    images = images.reshape(-1, *images.shape[2:])

    def step(params: Any, key: jax.Array) -> tuple[Any, None]:
        seen = augment(key, images) if augment else images
        slopes = jax.grad(task)(params, seen, labels)
        return jax.tree.map(lambda w, g: w - NETWORK_RATE * g, params, slopes), None

    return jax.lax.scan(step, params, jax.random.split(key, steps))[0]


def augmentation(augment: str, flip: bool) -> Any:
    """`(key, images) -> images`, or None."""
    if augment == "none":
        return None
    of = jp.distill
    mirrored = (of.flip(),) if flip else ()
    return of.siamese(of.color(), of.crop(), of.cutout(), of.scale(), of.rotate(), *mirrored)


# --- the phases -----------------------------------------------------------------------------------


def untouched(config: Config, s: Study) -> Made:
    """Real images of each class, other ones for each seed: where distillation begins."""
    available = s.by_class.shape[1]
    order = jax.vmap(lambda key: jax.random.permutation(key, available))
    rows = np.asarray(order(data.folded(s.keys, BEGIN)))[:, : config.images_per_class]
    first = jnp.asarray(s.by_class[:, rows].swapaxes(0, 1))
    return Made(first, {str(step): first for step in snapshots(config)})


def snapshots(config: Config) -> list[int]:
    """The steps whose images the picture shows."""
    return sorted({round(x) for x in np.linspace(0, config.iterations, SNAPSHOTS)})


def one_phase(
    config: Config, s: Study, journal: Journal, i: int, made: Made
) -> tuple[Made, dict[str, Any] | None]:
    """Distills, and logs on the way; then trains networks on the sets, which is one record."""
    if i == 0:
        return distilled(config, s, journal), None
    return made, tested(config, s, journal, made)


def distilled(config: Config, s: Study, journal: Journal, name: str = "distill") -> Made:
    """The sets after all steps; a study that distills several times names each."""
    made, lane = untouched(config, s), Seed(s.keys, data.folded(s.keys, NETWORKS))

    def train(course: Any, start: int, at: At) -> Any:
        state, along = course
        for stop in [step for step in snapshots(config) if step > start]:
            for point in lanes.advance(s.program, state, lane, stop, start):
                state, start = point.state, point.step
                loss = np.asarray(point.metrics["loss"])
                if not np.isfinite(loss).all():
                    raise RecipeError(
                        f"the images of {(~np.isfinite(loss)).sum()} of {len(loss)} sets have "
                        f"diverged at step {start}; lower --image-rate"
                    )
                if start == stop:
                    along = {**along, str(stop): lanes.copied(state.params)}
                record = {"step": start, "loss": loss.tolist(), "seconds": journal.seconds()}
                journal.log(record if name == "distill" else {"training": name, **record})
                at(start, (state, along))
        return state, along

    network = models.init(s.module, s.keys, jnp.asarray(s.by_class[0, :1]))["params"]
    extra = {"step": jnp.zeros(config.seeds, jnp.int32), "network": network}
    state = lanes.copied(State(made.images, extra, s.program.init(lane, made.images)))
    words = f"{config.seeds} sets of {len(s.by_class) * config.images_per_class} images"
    state, along = journal.once(name, config.iterations, (state, made.along), train, words)
    return Made(state.params, along)


# --- what networks learn from the sets ------------------------------------------------------------


def tested(config: Config, s: Study, journal: Journal, made: Made) -> dict[str, Any]:
    """Test accuracy of fresh networks trained on each set, and on all real images."""
    by_name = {
        "distilled": jp.distill.multi_formation(made.images, s.factor),
        "random real": untouched(config, s).images,
        "herding": by_herding(config, s),
        "all real": None,
    }
    accuracy = measures.accuracy(s.module, s.dataset.test)
    record: dict[str, Any] = {"step": config.iterations, "phase": "test"}
    for name, images in by_name.items():
        end = taught_by(config, s, journal, name, images)
        if name == "distilled":
            network = end.params, end.batch_stats, lanes.keep_all(end.params)
            checkpoints.save_model(config.out / folder.MODEL / name, *network)
        record[name] = accuracy({"params": end.params, "batch_stats": end.batch_stats}).tolist()
    return record | {"seconds": journal.seconds()}


def taught_by(
    config: Config, s: Study, journal: Journal, name: str, images: jax.Array | None
) -> State:
    """Fresh networks after all steps, each on its set (seeds, classes, n, ...); None: all real."""
    lane = sets.Pupil(s.keys, key=data.folded(s.keys, AUGMENT))
    examples: Split | int = s.dataset.train
    if images is not None:
        of_seeds = sets.of_classes(images)
        lane, examples = lane._replace(**of_seeds._asdict()), of_seeds.examples
    program = sets.program(
        s.module,
        lambda lane: settings.optimizer(config, config.steps),
        examples,
        config.batch_size,
        s.program.chunk_steps,
        augmentation(config.augment, config.flip),
    )
    variables = models.init(s.module, data.folded(s.keys, FRESH), jnp.asarray(s.by_class[0, :1]))
    network = lanes.Network(variables["params"], variables.get("batch_stats", {}), None)

    def to_the_end(state: State, start: int, at: At) -> State:
        return lanes.train(program, state, lane, config.steps, at, start)

    first, words = lanes.begin(program, network, lane), f"{config.seeds} networks"
    return journal.once(name, config.steps, first, to_the_end, words)


def by_herding(config: Config, s: Study) -> jax.Array:
    """Real images (seeds, classes, n, h, w, c) whose mean features are those of their classes."""

    @jax.jit
    @jax.vmap
    def chosen(key: jax.Array) -> jax.Array:
        params = s.module.init(jax.random.fold_in(key, HERD), s.by_class[0, :1])["params"]
        of_class = lambda images: jp.distill.herding(
            models.features(s.module, params, images), config.images_per_class
        )
        return jax.lax.map(of_class, jnp.asarray(s.by_class))

    rows = np.asarray(chosen(s.keys))  # (seeds, classes, n)
    return jnp.asarray(np.stack([s.by_class[np.arange(len(r))[:, None], r] for r in rows]))


main = cli.command(Config, distill)

if __name__ == "__main__":
    main()
