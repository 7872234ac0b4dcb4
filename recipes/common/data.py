"""Data sets as arrays in memory: the embedded digits, and MNIST and CIFAR-10 from TFDS folders.

A batch may be balanced: it has as many examples of each class.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from recipes.common.folder import RecipeError
from recipes.common.terminal import console

SHOWN = 5  # folders that an error lists
DATASETS = ("digits", "mnist", "cifar10")


class Key(IntEnum):
    """The purposes of a seed's key: it is folded with one of these, and never used as it is."""

    WEIGHTS = 0  # the first weights
    ORDER = 1  # the order of the examples
    METHOD = 2  # random numbers of a method: the key of an optimizer, random masks
    STUDY = 3  # and above: what a study draws anew for each child, phase or round


def folded(keys: jax.Array, purpose: int) -> jax.Array:
    """The keys (n,) for one purpose."""
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys)


class Split(NamedTuple):
    """Examples in order: `images` float32 (n, h, w, c), normalized, and `labels` int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """Two splits, the number of classes, and the statistics (c,) that normalized each channel."""

    train: Split
    test: Split
    classes: int
    mean: np.ndarray
    std: np.ndarray


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, train_examples: int | None = None
) -> Dataset:
    """The data set called `name`, each channel with mean 0 and standard deviation 1 over train.

    `data_dir` is a TFDS folder (default: the environment variable TFDS_DATA_DIR); digits need none.
    `train_examples` takes the first ones only. Raises `RecipeError` for an unknown name, a
    folder that does not exist or lacks the data set, and more examples than there are.
    """
    if name not in DATASETS:
        raise RecipeError(f"unknown dataset '{name}'; choose one of {', '.join(DATASETS)}")
    train, test = _digits() if name == "digits" else _tfds(name, data_dir)
    if train_examples is not None:
        if not 1 <= train_examples <= len(train.labels):
            raise RecipeError(
                f"--train-examples must be in [1, {len(train.labels)}] for {name}, "
                f"got {train_examples}"
            )
        train = Split(train.images[:train_examples], train.labels[:train_examples])
    classes = int(train.labels.max()) + 1
    mean, std = _normalize(train, test)
    return Dataset(train, test, classes, mean, std)


def hold_out(split: Split, examples: int, seed: int = 0) -> tuple[Split, Split]:
    """(the rest, a validation split of `examples`) by a fixed permutation.

    Raises `RecipeError` unless both have at least one example.
    """
    if not 1 <= examples < len(split.labels):
        raise RecipeError(
            f"can't hold out {examples:,} of {len(split.labels):,} examples for validation; hold "
            "out fewer, at least 1"
        )
    order = np.random.default_rng(seed).permutation(len(split.labels))
    rest, held = np.sort(order[examples:]), np.sort(order[:examples])
    return Split(*(x[rest] for x in split)), Split(*(x[held] for x in split))


def order(keys: jax.Array, examples: int, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """Indices (keys, batch) of the examples from step `start` on: each epoch is a permutation.

    An epoch leaves out the examples that do not fill a batch.
    """
    steps = examples // batch_size

    epoch, first = divmod(start, steps)
    while True:
        indices = np.asarray(_permutation(keys, epoch, examples))[:, : steps * batch_size]
        yield from indices.reshape(len(keys), steps, batch_size).swapaxes(0, 1)[first:]
        epoch, first = epoch + 1, 0


@partial(jax.jit, static_argnums=2)
@partial(jax.vmap, in_axes=(0, None, None))
def _permutation(key: jax.Array, epoch: Any, examples: int) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(key, Key.ORDER), epoch)
    return jax.random.permutation(key, examples).astype(jnp.int32)


def _normalize(train: Split, test: Split) -> tuple[np.ndarray, np.ndarray]:
    """Normalizes both splits in place, by train's mean and deviation, which it returns.

    In place, since CIFAR-10 in float32 takes 0.6 GB.
    """
    mean = train.images.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
    std = train.images.std((0, 1, 2), dtype=np.float64).astype(np.float32)
    for split in (train, test):
        np.subtract(split.images, mean, out=split.images)
        np.divide(split.images, std, out=split.images)
    return mean, std


def _digits() -> tuple[Split, Split]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32)
    parts = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    images, test_images, labels, test_labels = parts
    return Split(images, labels.astype(np.int32)), Split(test_images, test_labels.astype(np.int32))


def _tfds(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Split, Split]:
    folder = tfds_folder(name, data_dir, "digits")
    return _read(name, "train", folder), _read(name, "test", folder)


def tfds_folder(name: str, data_dir: str | os.PathLike[str] | None, embedded: str) -> Path:
    """The TFDS folder that holds `name`: `data_dir`, or that of the environment.

    Raises `RecipeError` without one; it names the data set `embedded`, which needs no folder.
    """
    folder = data_dir or os.environ.get("TFDS_DATA_DIR")
    if not folder:
        raise RecipeError(
            f"{name} is read from disk: say where with --data-dir DIR (or TFDS_DATA_DIR), "
            f"a TensorFlow Datasets folder; --dataset {embedded} needs none"
        )
    if not Path(folder).is_dir():
        raise RecipeError(f"--data-dir '{folder}' is not a folder")
    if not (Path(folder) / name).is_dir():
        held = sorted(p.name for p in Path(folder).iterdir() if p.is_dir())
        first = ", ".join(held[:SHOWN]) or "no folder"
        more = f" and {len(held) - SHOWN:,} folders more" if len(held) > SHOWN else ""
        raise RecipeError(f"--data-dir '{folder}' has no '{name}'; it holds {first}{more}")
    return Path(folder)


def _read(name: str, split: str, folder: str | os.PathLike[str]) -> Split:
    """One split, read without tensorflow; the images are decoded here, once."""
    import tensorflow_datasets as tfds
    from PIL import Image

    images, labels, size = [], [], 1000
    try:
        source = tfds.data_source(
            name,
            split=split,
            data_dir=folder,
            download=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        for start in track(
            range(0, len(source), size),
            f"reading {name} {split}",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            for example in source.__getitems__(list(range(start, min(start + size, len(source))))):
                images.append(np.asarray(Image.open(io.BytesIO(example["image"]))))
                labels.append(example["label"])
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise RecipeError(f"cannot read '{name}' in '{folder}': {first_line}") from error
    stacked = np.stack(images).astype(np.float32)
    return Split(stacked.reshape(*stacked.shape[:3], -1), np.asarray(labels, np.int32))


def balanced_rows(key: jax.Array, labels: np.ndarray, classes: int, of_each: int) -> jax.Array:
    """Rows of a balanced batch, int32 (classes * of_each,), without replacement, class by class.

    Raises `RecipeError` if a class has fewer examples.
    """
    counts = np.bincount(labels, minlength=classes)
    for label, count in enumerate(counts):
        if count < of_each:
            raise RecipeError(
                f"a balanced batch needs {of_each} examples of each of {classes} classes; class "
                f"{label} has {count or 'none'} of {len(labels):,}. Take fewer of each, or more "
                "training examples"
            )
    # in the order of their classes, and by chance within one
    order = jnp.lexsort((jax.random.uniform(key, (len(labels),)), jnp.asarray(labels)))
    first = np.cumsum(counts) - counts
    return order[(first[:, None] + np.arange(of_each)[None]).ravel()].astype(jnp.int32)


def by_class(split: Split, classes: int) -> np.ndarray:
    """The images of each class (classes, n, h, w, c), n those of the smallest class, first ones.

    Raises `RecipeError` for a class without images.
    """
    rows = [np.flatnonzero(split.labels == label) for label in range(classes)]
    least = min(len(of) for of in rows)
    if not least:
        missing = [label for label, of in enumerate(rows) if not len(of)]
        raise RecipeError(
            f"class {missing[0]} has no image among {len(split.labels):,} training examples; take "
            "more --train-examples"
        )
    return np.stack([split.images[of[:least]] for of in rows])
