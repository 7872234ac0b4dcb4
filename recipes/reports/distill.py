"""What `recipes.distill` tells: its numbers, its report, its pictures, and the file of the sets."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

import jaxprune as jp
from recipes.common import dead, folder, report, sets
from recipes.common.data import Dataset
from recipes.common.figures import images as pictures
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.distill import Config, Made

IMAGES, LOSS = "plots/images.png", "plots/loss.png"
ARMS = ("distilled", "random real", "herding", "all real")


def write(
    config: Config,
    dataset: Dataset,
    made: Made,
    factor: int,
    losses: list[dict[str, Any]],
    tested: dict[str, Any],
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    chance = dead.chance(dataset.test.labels)
    images = np.asarray(jp.distill.multi_formation(made.images, factor))
    folder.write(config.out / sets.FILE, npz(config, dataset, images))
    of_set = images.shape[1] * images.shape[2]
    stored = images.shape[1] * config.images_per_class
    of_arm = dict.fromkeys(ARMS, stored) | {
        "distilled": of_set,
        "all real": len(dataset.train.labels),
    }
    summary = report.summary(
        config,
        "test accuracy of fresh networks trained on a few images a class",
        method=config.method,
        images_per_class=config.images_per_class,
        factor=factor,
        iterations=config.iterations,
        steps=config.steps,
        augment=config.augment,
        first_loss=report.over_seeds(losses[0]["loss"]),
        last_loss=report.over_seeds(losses[-1]["loss"]),
        arms={
            arm: {
                "training_images": of_arm[arm],
                "test_accuracy": report.accuracy(tested[arm], chance),
            }
            for arm in ARMS
        },
        seconds_to_distill=losses[-1]["seconds"],
        seconds=tested["seconds"],
        chance=chance,
    )
    return report.finish(config, write_up(config, dataset, made, losses, summary), summary)


def npz(config: Config, dataset: Dataset, made: np.ndarray) -> bytes:
    """The sets, and what a reader needs to use them."""
    seeds, classes, n = made.shape[:3]
    file = io.BytesIO()
    np.savez_compressed(
        file,
        images=made.reshape(seeds, classes * n, *made.shape[3:]),
        labels=np.repeat(np.arange(classes, dtype=np.int32), n),
        mean=dataset.mean,
        std=dataset.std,
        dataset=config.dataset,
        method=config.method,
    )
    return file.getvalue()


def write_up(
    config: Config,
    dataset: Dataset,
    made: Made,
    losses: list[dict[str, Any]],
    summary: dict[str, Any],
) -> Writeup:
    """The result, for people: a row for each kind of set."""
    along = {int(step): np.asarray(images)[0] for step, images in made.along.items()}
    steps = [record["step"] for record in losses]
    return Writeup(
        title="Distilled data",
        headline=(
            f"{config.images_per_class} stored images a class of {config.dataset}, "
            f"{config.iterations:,} steps of {config.method} matching, {config.seeds} seeds; test "
            f"accuracy of fresh networks ({config.model}) after {config.steps:,} steps on each set"
        ),
        columns=("training images", "test accuracy"),
        rows=[
            (arm, f"{of['training_images']:,}", report.percent(of["test_accuracy"]))
            for arm, of in summary["arms"].items()
        ],
        pictures={
            IMAGES: Picture(
                pictures.over_time(along, dataset.mean, dataset.std),
                "The first image of each class over the steps, from the real image that it begins "
                "with; on the right the last images. Of the first seed.",
            ),
            LOSS: Picture(
                pictures.loss(steps, np.array([record["loss"] for record in losses])),
                "The loss of the images: the mean over seeds, and the range.",
            ),
        },
        layers={},
        models=[sets.FILE, f"{folder.MODEL}/distilled"],
        notes=f"{summary['seconds_to_distill']:.0f} s to distill",
        saved=(
            "The images (seeds, classes * n, height, width, channels), normalized, their labels, "
            "the mean and the deviation that normalized them, and the networks that learned from "
            "them are in {models}."
        ),
        of_layers="",
    )
