"""Training on a small set of images, one set a lane: distilled images, or as many real ones."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recipes.common import lanes, models
from recipes.common.data import Dataset, Split
from recipes.common.folder import RecipeError
from recipes.common.lanes import Program, State

FILE = "distilled.npz"


class Pupil(NamedTuple):
    """A lane that trains on its set."""

    order: jax.Array
    rates: Any = ()
    decay: Any = ()
    key: Any = ()  # of augmentation
    images: Any = ()  # (examples, h, w, c); () for the examples of the program
    labels: Any = ()  # (examples,)


class Sets(NamedTuple):
    """A set for each seed."""

    images: jax.Array  # float32 (seeds, examples, h, w, c), normalized
    labels: jax.Array  # int32 (seeds, examples)

    @property
    def examples(self) -> int:
        """The number of images of a seed."""
        return self.images.shape[1]

    def per_class(self, classes: int) -> int:
        """The number of images of each class."""
        return self.examples // classes


def program(
    module: Any,
    optimizer: Callable[[Any], optax.GradientTransformation],
    examples: Split | int,
    batch_size: int,
    chunk_steps: int,
    augment: Any = None,
) -> Program:
    """The program of lanes that are a `Pupil`.

    Args:
      examples: the training examples of all lanes; or, where each lane has a set, the number of
        images in a set. Then an example of the program is a place in the set.
      augment: `(key, images) -> images`, at every step; or None.
    """
    loss_fn, in_lane = models.classification(module), isinstance(examples, int)
    if isinstance(examples, int):
        places = np.arange(examples, dtype=np.int32)
        examples = Split(places, places)

    def loss(params: Any, state: State, seen: jax.Array, labels: jax.Array, lane: Pupil) -> Any:
        if in_lane:
            seen, labels = lane.images[seen], lane.labels[labels]
        if augment:
            seen = augment(jax.random.fold_in(lane.key, _steps_of(state)), seen)
        return loss_fn(params, state.batch_stats, seen, labels)

    batch_size = min(batch_size, len(examples.labels))
    return lanes.program(module, optimizer, examples, batch_size, chunk_steps, loss)


def _steps_of(state: State) -> jax.Array:
    """The number of steps that the optimizer has made."""
    return optax.tree.get_all_with_path(state.opt_state, "count")[0][1]


def of_classes(images: jax.Array) -> Sets:
    """Sets of images (seeds, classes, n, h, w, c)."""
    seeds, classes, n = images.shape[:3]
    labels = jnp.repeat(jnp.arange(classes, dtype=jnp.int32), n)
    flat = jnp.asarray(images).reshape(seeds, classes * n, *images.shape[3:])
    return Sets(flat, jnp.tile(labels, (seeds, 1)))


def load(path: Path, name: str, dataset: Dataset, seeds: int) -> Sets:
    """The sets that `recipes.distill` wrote to the folder `path`, the first `seeds` of them.

    Raises `RecipeError`, which names the path: without the file, or for sets of another data set
    than `name`, of other shapes, of another normalization, of fewer seeds, or with nan or inf.
    """
    file = path / FILE
    if not file.is_file():
        raise RecipeError(
            f"'{path}' has no {FILE}; give the folder of a finished run of recipes.distill"
        )
    try:
        with np.load(file) as saved:
            held = {key: saved[key] for key in saved.files}
        images, labels = held["images"], held["labels"]
        made_from, mean, std = str(held["dataset"]), held["mean"], held["std"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RecipeError(f"'{file}' is no file of recipes.distill: {error}") from error
    shape, wanted = images.shape[2:], dataset.train.images.shape[1:]
    if made_from != name:
        raise RecipeError(f"'{file}' was distilled from {made_from}, and this run has {name}")
    if shape != wanted:
        raise RecipeError(f"'{file}' has images of shape {shape}, and {name} has {wanted}")
    if not (np.allclose(mean, dataset.mean) and np.allclose(std, dataset.std)):
        raise RecipeError(
            f"'{file}' was normalized by the mean {_shown(mean)} and deviation {_shown(std)}, and "
            f"this run by {_shown(dataset.mean)} and {_shown(dataset.std)}: give the "
            "--train-examples of the distillation"
        )
    if len(images) < seeds:
        raise RecipeError(
            f"'{file}' has sets of {len(images)} seeds, and this run has {seeds} seeds; distill "
            f"more, or take --seeds {len(images)}"
        )
    if not np.isfinite(images[:seeds]).all():
        raise RecipeError(f"'{file}' has images with nan or inf")
    return Sets(jnp.asarray(images[:seeds]), jnp.tile(jnp.asarray(labels), (seeds, 1)))


def _shown(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
